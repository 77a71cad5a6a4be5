import sys

import pytest

from suptickets_ray import load_config
from suptickets_ray.sparse.criteria import GROW_SCORES, REDISTRIBUTIONS, SALIENCY_SCORES
from suptickets_ray.sparse.initial_masks import INITIAL_MASKS
from suptickets_ray.training.preflight import preflight


def test_what_cannot_be_built_is_found_before_anything_starts(tmp_path, monkeypatch):
    (tmp_path / "bad_models.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def shape(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3, num_classes))\n"
        "def logits():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
        "class Unused(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.used, self.idle = nn.Linear(64, 10), nn.Linear(2, 2)\n"
        "    def forward(self, x):\n        return self.used(x.flatten(1))\n"
        "def unused():\n    return Unused()\n"
        "def vectors():\n    return nn.BatchNorm2d(1)\n"
        "class Pair(Unused):\n    def forward(self, x):\n        return {'scores': self.used(x.flatten(1))}\n"
        "def pair():\n    return Pair()\n"
        "def complex_buffer():\n    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "    net.register_buffer('frequencies', torch.ones(4, dtype=torch.complex64))\n    return net\n"
        "class Infinite(Unused):\n    def forward(self, x):\n        return self.used(x.flatten(1)) / 0\n"
        "def infinite():\n    return Infinite()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, message in [
        ("shape", r"Cannot run the network of model.name on test inputs of shape \(2, 1, 8, 8\)"),
        ("logits", r"must give logits of shape \(2, 10\); got \(2, 3\)"),
        ("unused", "must use every weight it has; 'idle.weight' gets no gradient"),
        ("pair", "must return a tensor of logits, or an object, dict or tuple with logits; got dict"),
        ("complex_buffer", "of model.name as a ticket: ValueError: the type of 'frequencies' must be one of"),
        ("infinite", "must give finite outputs for test inputs"),
        ("vectors", "must build a network with a weight of 2 or more dimensions"),
    ]:
        with pytest.raises(ValueError, match=message):
            preflight(load_config(None, [f"model.name=bad_models:{name}", "model.initialization=default"]))
    with pytest.raises(ValueError, match="the prune window must hold at least one update"):
        preflight(load_config(None, ["method.name=granet", "method.update_interval_steps=5000"]))


MODELS = """
import torch
from torch import nn
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.b.weight = self.a.weight
    def forward(self, x):
        return self.out(self.b(self.a(x.flatten(1))))
def tied():
    return Tied()
def plain(width=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 10))
def breaks():
    raise FileNotFoundError("weights.pt")
def score(layer):
    return layer.momentum.abs()
def load(kind="good"):
    labels = torch.arange(30) % 3
    parts = {name: (torch.zeros(30, 64), labels) for name in ("train", "validation", "test")}
    if kind == "shape":
        parts["test"] = (torch.zeros(30, 63), labels)
    if kind == "labels":
        parts["validation"] = (torch.zeros(30, 64), labels + 1)
    if kind == "negative":
        return {name: (inputs, labels - 5) for name, (inputs, labels) in parts.items()}
    if kind == "short":
        parts = {name: (inputs, labels.int()) for name, (inputs, labels) in parts.items()}
    return {**parts, "num_classes": 10 if kind != "labels" else 3}
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=faulty:tied"], "without shared weights; 'a.weight' and 'b.weight' are one tensor"),
        (
            ["model.name=faulty:breaks"],
            "Cannot call the function of model.name with these options: FileNotFoundError: weights.pt",
        ),
        (["model.name=faulty:plain", "model.options.width=x"], "Cannot call the function of model.name .* TypeError"),
        (["method.grow=faulty:score"], "method.grow must give scores of each weight's shape, .*AttributeError"),
        (["data.name=faulty:load", "data.options.kind=shape"], r"on test inputs of shape \(2, 63\)"),
        (["data.name=faulty:load", "data.options.kind=labels"], "the validation labels must be classes 0 to 2"),
        (
            ["data.batch_size=1", "cluster.num_workers=1"],
            "the network of model.name on train inputs of shape .*more than 1 value",
        ),
        (
            ["model.name=lenet_300_100", "superposition.batchnorm=average", "model.initialization=default"],
            "superposition.batchnorm 'average' has no effect on a network without BatchNorm",
        ),
        (["data.name=faulty:load", "data.options.kind=negative"], "labels must be classes 0 to 0"),
        (["method.density=0.0001"], "density must leave a connection for each of the 3 layers"),
        (["method.update_interval_steps=100000"], "update_interval_steps must leave room for an update"),
    ],
)
def test_faults_of_ones_own_code_and_data_are_settings_errors(tmp_path, monkeypatch, overrides, message):
    (tmp_path / "faulty.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        preflight(load_config(None, overrides))


def test_labels_of_a_shorter_type_are_as_good(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    preflight(load_config(None, ["data.name=faulty:load", "data.options.kind=short"]))


@pytest.mark.parametrize("content", ["def build(:", "1 / 0"])
def test_a_module_that_cannot_be_imported_is_a_settings_error(tmp_path, monkeypatch, content):
    (tmp_path / "unimportable.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="importing 'unimportable' failed: (SyntaxError|ZeroDivisionError)"):
        load_config(None, ["model.name=unimportable:build"])


@pytest.mark.parametrize(
    "override",
    [
        *(f"method.grow={row}" for row in GROW_SCORES),
        *(f"method.drop={row}" for row in SALIENCY_SCORES),
        *(f"method.redistribution={row}" for row in REDISTRIBUTIONS),
        *(f"method.distribution={row}" for row in INITIAL_MASKS if row != "from_nonzeros"),
        "method.dense_layers=[first]",
    ],
)
def test_every_row_of_the_core_can_be_used_by_a_recipe(override):
    preflight(load_config(None, [override, "model.initialization=default"]))


@pytest.mark.parametrize("kind", ["pair", "dataset"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_inputs_that_are_not_finite_are_refused_with_their_number(tmp_path, monkeypatch, split, kind):
    (tmp_path / "nan_data.py").write_text(
        "import torch\n"
        "def load(split, kind):\n"
        "    labels = torch.arange(30) % 3\n"
        "    parts = {name: (torch.zeros(30, 64), labels) for name in ('train', 'validation', 'test')}\n"
        "    parts[split][0][17, 3] = float('nan')\n"
        "    parts[split][0][20, 0] = float('inf')\n"
        "    wrap = torch.utils.data.TensorDataset if kind == 'dataset' else lambda *pair: pair\n"
        "    return {name: wrap(*pair) for name, pair in parts.items()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ["data.name=nan_data:load", f"data.options={{split: {split}, kind: {kind}}}", "data.batch_size=10"]
    with pytest.raises(ValueError, match="inputs must be finite; 2 of 30 examples"):
        preflight(load_config(None, [*own, "data.label_noise=0"]))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            "torch.full((30, 1, 8, 8), 15, dtype=torch.uint8)",
            "uint8 with values from 15 to 15, and are scaled as if 255",
        ),
        ("torch.full((30, 1, 8, 8), 255.0)", "range from 255 to 255 and are not scaled"),
    ],
)
def test_inputs_of_another_range_than_their_type_are_reported(tmp_path, monkeypatch, inputs, message):
    (tmp_path / "ranged_data.py").write_text(
        f"import torch\ndef load():\n    pair = ({inputs}, torch.arange(30) % 10)\n"
        "    return {'train': pair, 'test': pair, 'num_classes': 10}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ranged_data", raising=False)
    with pytest.warns(UserWarning, match=message):
        preflight(load_config(None, ["data.name=ranged_data:load", "data.batch_size=10"]))


ODD = """
import sys
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, change=lambda net, logits: logits, **buffers):
        super().__init__()
        self.body, self.change = nn.Linear(64, 10), change
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
    def forward(self, x):
        return self.change(self, self.body(x.flatten(1)))
def grow(net, logits):
    net.state = torch.cat([net.state, net.state[:1]])
    return logits
def adopt(net, logits):
    net.more = nn.Parameter(torch.ones(2))
    return logits
def sparse(): return Net(lambda net, logits: logits.to_sparse())
def whole(): return Net(lambda net, logits: logits.long())
def detached(): return Net(lambda net, logits: logits.detach())
def sparse_buffer(): return Net(state=torch.eye(3).to_sparse())
def nan_buffer(): return Net(state=torch.full((3,), float("nan")))
def growing(): return Net(grow, state=torch.ones(2))
def adopting(): return Net(adopt)
def exits(): sys.exit(0)
def two_lines(): raise RuntimeError("first\\nsecond")
class Damaged(torch.utils.data.Dataset):
    def __len__(self): return 30
    def __getitem__(self, index):
        if index == 3:
            raise RuntimeError("the record is damaged")
        return torch.zeros(64), index % 10
def pair(inputs): return (inputs, torch.arange(30) % 10)
def damaged(): return {"train": Damaged(), "test": Damaged()}
def complex_inputs(): return dict.fromkeys(["train", "test"], pair(torch.zeros(30, 64, dtype=torch.complex64)))
"""


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        (
            "model",
            "sparse",
            "must return a strided tensor of floating-point logits; got torch.sparse_coo of torch.float32",
        ),
        ("model", "whole", "must return a strided tensor of floating-point logits; got torch.strided of torch.int64"),
        ("model", "detached", "Cannot compute the loss of model.name and its gradients: RuntimeError: element 0"),
        ("model", "sparse_buffer", "'state' has the layout torch.sparse_coo"),
        ("model", "nan_buffer", "'state' holds NaN or infinity"),
        ("model", "growing", "must not change in a forward pass; 'state' does"),
        ("model", "adopting", "must not change in a forward pass; 'more' does"),
        ("model", "exits", "Cannot call the function of model.name with these options: SystemExit: 0"),
        ("model", "two_lines", "with these options: RuntimeError: first second"),
        ("data", "damaged", "Cannot read example 3 of a Dataset: RuntimeError: the record is damaged"),
        ("data", "complex_inputs", "the train inputs must be real numbers; got torch.complex64"),
    ],
)
def test_a_model_or_data_that_a_run_cannot_use_is_one_sentence(tmp_path, monkeypatch, key, name, message):
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    with pytest.raises(ValueError, match=message) as raised:
        preflight(load_config(None, [f"{key}.name=odd:{name}", "model.initialization=default", "data.batch_size=10"]))
    assert "\n" not in str(raised.value)


def test_a_module_that_exits_when_it_is_imported_is_refused(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="importing 'script' failed: SystemExit: 0"):
        load_config(None, ["model.name=script:build"])


def test_classes_without_a_training_example_are_counted(tmp_path, monkeypatch):
    (tmp_path / "gaps.py").write_text(
        "import torch\ndef load():\n    pair = (torch.zeros(30, 64), torch.arange(30) % 2 * 5)\n"
        "    return {'train': pair, 'test': pair}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match="4 of 6 classes have no training example, the first of them 1"):
        preflight(load_config(None, ["data.name=gaps:load", "data.batch_size=10", "model.initialization=default"]))
