"""Whatever form a ticket is exported in, loaded again it gives the ticket's logits."""

import json
import os
import sys

import pytest
import torch
from torch import nn

from suptickets_ray import Ticket, load_config
from suptickets_ray.offline.csr import as_csr, load_csr, read_csr, to_csr_file
from suptickets_ray.offline.export import EXPORTS, export_stored
from suptickets_ray.offline.onnx import check_logits, to_onnx_file
from suptickets_ray.recipes.load import to_yaml
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.training.data import load_data
from suptickets_ray.training.loop import build_learner

SMALL = ["model.options.widths=[16]", "data.num_train_examples=60"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config():
    return load_config(None, SMALL)


@pytest.fixture(scope="module")
def learner(config):
    learner = build_learner(config, load_data(config.data), CPU)
    with torch.no_grad():  # statistics of its own, as a trained network has
        learner.model(load_data(config.data).train.batch(torch.arange(60))[0])
    learner.model.eval()
    return learner


@pytest.fixture(scope="module")
def ticket(learner):
    return learner.ticket({"run": "digits", "chain": 0})


@pytest.fixture
def path(tmp_path, config, ticket):
    """A ticket in the folder of its run."""
    store = RunStore(str(tmp_path / "run"))
    store.write("config.yaml", to_yaml(config).encode())
    store.write("superposed.arrow", ticket.to_bytes())
    return str(tmp_path / "run/superposed.arrow")


@pytest.fixture(scope="module")
def inputs(config):
    return load_data(config.data).test.batch(torch.arange(7))[0]


@pytest.fixture(scope="module")
def logits(learner, inputs):
    with torch.no_grad():
        return learner.model(inputs)


def fresh():
    """The same network in plain torch, with other weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    ).eval()


@torch.no_grad()
def test_safetensors_load_in_plain_torch_and_give_the_same_logits(path, tmp_path, ticket, inputs, logits):
    import safetensors
    import safetensors.torch

    file = export_stored(path, "safetensors", str(tmp_path / "a.safetensors")).path
    model = fresh()
    model.load_state_dict(safetensors.torch.load_file(file))
    assert torch.equal(model(inputs), logits)
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["provenance"]) == ticket.provenance
    assert metadata["digest"] == ticket.digest
    assert float(metadata["density"]) == ticket.density


@torch.no_grad()
def test_a_state_dict_loads_with_weights_only_and_gives_the_same_logits(path, tmp_path, inputs, logits):
    file = export_stored(path, "state_dict", str(tmp_path / "a.pt")).path
    model = fresh()
    model.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(inputs), logits)


def test_onnx_gives_the_same_logits_for_batches_of_any_size(path, tmp_path, ticket, inputs, logits):
    import onnxruntime

    file = export_stored(path, "onnx", str(tmp_path / "a.onnx")).path
    session = onnxruntime.InferenceSession(file)
    for size in (1, 7):
        found = session.run(["logits"], {"input": inputs[:size].numpy()})[0]
        assert torch.allclose(torch.from_numpy(found), logits[:size], atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["digest"] == ticket.digest


@torch.no_grad()
def test_csr_gives_the_same_logits_with_sparse_linear_layers(path, tmp_path, ticket, inputs, logits):
    file = export_stored(path, "csr", str(tmp_path / "a.pt")).path
    model = load_csr(file, fresh())
    assert {name for name, weight in model.named_parameters() if weight.layout is torch.sparse_csr} == set(ticket.masks)
    assert torch.allclose(model(inputs), logits, atol=1e-5)
    assert all(torch.equal(tensor, ticket.state_dict()[name]) for name, tensor in read_csr(file).items())


def test_arrow_is_the_tickets_own_file(path, tmp_path, ticket):
    file = export_stored(path, "arrow", str(tmp_path / "a.arrow")).path
    assert Ticket.load(file).digest == ticket.digest
    assert Ticket.load(file).provenance == ticket.provenance


def test_a_convolution_becomes_rows_of_its_filters_by_hand():
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 1] = mask[1, 0, 0, 0] = mask[1, 0, 1, 1] = True
    weight = torch.arange(8.0).view(2, 1, 2, 2) * mask
    csr = as_csr(Ticket({"w": weight}, {"w": mask}, {}).parts["w"])
    assert csr.crow_indices().tolist() == [0, 1, 3]
    assert csr.col_indices().tolist() == [1, 0, 3]
    assert csr.values().tolist() == [1, 4, 7]
    assert csr.shape == (2, 4)


@torch.no_grad()
def test_a_convolutional_network_comes_back_from_csr(tmp_path):
    def network():
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2)).eval()

    model = network()
    masks = {name: torch.rand_like(model.get_parameter(name)) < 0.3 for name in ("0.weight", "3.weight")}
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)
    file = tmp_path / "a.pt"
    file.write_bytes(to_csr_file(Ticket(model.state_dict(), masks, {}), {}))
    loaded, images = load_csr(file, network()), torch.randn(5, 1, 4, 4)
    assert torch.allclose(loaded(images), model(images), atol=1e-6)
    assert loaded[0].weight.layout is torch.strided


def test_what_is_no_csr_export_is_refused(tmp_path):
    (tmp_path / "text").write_text("no archive")
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name in ("text", "other.pt", "missing.pt"):
        with pytest.raises(ValueError, match="must be a file that `suptickets export --format csr` wrote"):
            read_csr(tmp_path / name)


class Planted:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_what_somebody_planted_in_a_csr_export_does_not_run(tmp_path):
    torch.save({"csr": Planted(tmp_path / "ran"), "shapes": {}, "dense": {}, "metadata": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="must be a file that `suptickets export --format csr` wrote"):
        read_csr(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_a_csr_export_of_another_network_is_refused(path, tmp_path):
    file = export_stored(path, "csr", str(tmp_path / "a.pt")).path
    with pytest.raises(ValueError, match="Cannot load .* into this network"):
        load_csr(file, nn.Linear(3, 2))


def test_an_onnx_file_with_other_logits_is_refused(inputs):
    content = to_onnx_file(fresh(), inputs, {})
    with pytest.raises(RuntimeError, match="logits differ from torch's by .*, more than 1e-05"):
        check_logits(content, fresh(), [inputs])


def test_a_network_that_only_takes_one_batch_size_is_refused():
    class Fixed(nn.Module):
        def forward(self, inputs):
            return inputs + torch.zeros(4, 3)

    with pytest.raises(ValueError, match="for any batch size: it takes only batches of 4"):
        to_onnx_file(Fixed().eval(), torch.randn(2, 3), {})


@pytest.mark.parametrize(
    ("form", "package"), [("safetensors", "safetensors"), ("onnx", "onnxscript"), ("onnx", "onnxruntime")]
)
def test_a_missing_package_is_named_with_its_extra_before_anything_is_read(form, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = rf"must have the package {package}; it is missing. Run: pip install 'suptickets-ray\[export\]'"
    with pytest.raises(ValueError, match=sentence):
        export_stored("nowhere.arrow", form)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"export_format": "safetensor"}, "unknown export format 'safetensor'; did you mean 'safetensors'?"),
        ({"export_format": "csr", "overrides": ["data.root=a"]}, "data.root=a has no effect with --format csr"),
        ({"export_format": "arrow", "recipe": "digits"}, "--recipe has no effect with --format arrow"),
        ({"export_format": "csr", "output": "no/such/folder/a.pt"}, "--output must be in an existing folder"),
        ({"export_format": "csr", "output": "/"}, "--output must be a file; got the folder '/'"),
        ({"export_format": "onnx", "overrides": ["model.name=mlp"]}, "must be a setting of the data"),
    ],
)
def test_settings_that_cannot_be_are_refused(path, arguments, sentence):
    with pytest.raises(ValueError) as raised:
        export_stored(path, **arguments)
    assert sentence in str(raised.value)


def test_no_other_form_is_written_over_the_ticket_itself(path, ticket):
    with pytest.raises(ValueError, match="must be another file than the ticket itself"):
        export_stored(path, "safetensors", path)
    assert Ticket.load(path).digest == ticket.digest


def test_without_an_output_the_file_has_the_tickets_name_in_the_working_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported = export_stored(path, "state_dict")
    assert exported.path == str(tmp_path / "superposed.pt")
    assert exported.num_bytes == (tmp_path / "superposed.pt").stat().st_size
    assert exported.load_code == "model.load_state_dict(torch.load('superposed.pt', weights_only=True))"


def test_onnx_needs_no_files_of_the_data_where_made_up_data_stand_in(path, tmp_path):
    overrides = ["data.name=synthetic"]
    assert export_stored(path, "onnx", str(tmp_path / "a.onnx"), overrides=overrides).num_bytes > 0


def test_masked_weights_are_exported_with_zeros(path, tmp_path, ticket):
    file = export_stored(path, "state_dict", str(tmp_path / "a.pt")).path
    state = torch.load(file, weights_only=True)
    assert all(not state[name][~mask].any() for name, mask in ticket.masks.items())


def test_every_form_says_how_it_is_loaded():
    assert all("{name!r}" in row.load_code for row in EXPORTS.values())
