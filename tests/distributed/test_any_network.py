"""Any network, task and optimizer: from pretraining to the report on a real Ray, with a resume in each phase."""

import json
from pathlib import Path

import pytest
import torch

from suptickets_ray import Ticket, load_config, train, tune
from suptickets_ray.cli import main
from suptickets_ray.progress.events import EpochEnded, TicketFinished

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MODULE = '''
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer
from suptickets_ray.training.models import build_model
from suptickets_ray.config import ModelConfig

def vit(num_classes):
    return VisionTransformer(8, 4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=num_classes)

class Outputs:
    def __init__(self, logits):
        self.loss, self.logits = None, logits

class Labeller(nn.Module):
    """Like a network of Hugging Face: keyword arguments in, an object with logits out."""
    def __init__(self, num_classes):
        super().__init__()
        self.words, self.hidden, self.classifier = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, num_classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(2)
        features = torch.relu(self.hidden(self.words(input_ids))) * mask
        return Outputs(self.classifier(features.sum(1) / mask.sum(1)))

def labeller(num_outputs):
    return Labeller(num_outputs)

def sentences(split_seed):
    generator = torch.Generator().manual_seed(split_seed)
    parts = {}
    for name, count in (("train", 96), ("validation", 40), ("test", 40)):
        ids = torch.randint(20, (count, 6), generator=generator)
        mask = (torch.arange(6) < torch.randint(2, 7, (count, 1), generator=generator)).float()
        parts[name] = ({"input_ids": ids, "attention_mask": mask}, ((ids < 10) * mask).sum(1).gt(2).long())
    return parts
'''

IMAGES = ["data.name=synthetic", "data.options={shape: [3, 8, 8], num_classes: 3, num_train: 72, num_test: 40}"]
ADAMW = [
    "train.optimizer=adamw",
    "train.lr=0.005",
    "train.lr_schedule=warmup_cosine",
    "train.decay_norm_and_bias=false",
]
CASES = {
    "vit": ["model.name=any_network:vit", *IMAGES, *ADAMW],
    "regression": [
        "task.name=regression",
        "model.name=mlp",
        "model.options={widths: [16], batchnorm: false}",
        "data.name=table",
        "data.options.table=diabetes",
        *ADAMW,
    ],
    "hf_style": ["model.name=any_network:labeller", "data.name=any_network:sentences", *ADAMW],
    "fine_tuned": [
        "model.name=resnet18",
        "model.freeze=[conv1, bn1, layer1]",
        "method.distribution=prune_global",
        "model.weights=resnet18.pt",
        *IMAGES,
        *ADAMW,
        "train.lr=0.0005",
    ],
}
TINY = [
    "data.batch_size=24",
    "train.epochs=8",
    "train.checkpoint_every_epochs=2",
    "tickets.num_chains=2",
    "tickets.cycle_epochs=1",
    "tickets.cycle_rate=0.25",
    "tickets.lr_high=0.002",
    "method.update_interval_steps=3",
    "superposition.gate_tolerance=none",
]
BASE = {
    "name": "any",
    "model": {"name": "mlp"},
    "data": {"name": "digits"},
    "train": {"epochs": 8},
    "method": {"name": "rigl", "density": 0.3},
}


class Killed(Exception):
    """Ends a run between two events, as Ctrl-C does."""


def until(kind):
    def stop(event):
        if isinstance(event, kind) and getattr(event, "epoch", 3) >= 3:
            raise Killed

    return stop


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumes_with_an_equal_digest_and_its_files_can_be_used(case, ray_address, tmp_path, monkeypatch, capsys):
    (tmp_path / "any_network.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    if case == "fine_tuned":
        from torchvision.models import resnet18

        torch.manual_seed(0)
        torch.save(resnet18(num_classes=7).state_dict(), tmp_path / "resnet18.pt")

    def config(name):
        return load_config({**BASE, "name": name}, [*CASES[case], *TINY, f"storage={tmp_path}/runs"])

    straight = train(config("straight"))
    for kind in (EpochEnded, TicketFinished):
        with pytest.raises(Killed):
            train(config("killed"), until(kind))
    resumed = train(config("killed"))
    assert resumed.result["superposed"]["digest"] == straight.result["superposed"]["digest"]
    assert [row["digest"] for row in resumed.result["tickets"]] == [row["digest"] for row in straight.result["tickets"]]

    metric = straight.result["task_metric"]["name"]
    assert metric == ("mean_squared_error" if case == "regression" else "accuracy")
    run = Path(straight.path)
    assert main(["evaluate", f"{run}/superposed.arrow", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[metric] == pytest.approx(straight.result["superposed"][metric])
    form = "safetensors" if case == "hf_style" else "onnx"  # ONNX takes one tensor
    assert main(["export", f"{run}/superposed.arrow", "--format", form, "--output", str(tmp_path / "out")]) == 0
    assert main(["report", str(run)]) == 0
    assert metric.replace("_", " ") in (run / "report.html").read_text()
    if case == "fine_tuned":
        loaded = torch.load(tmp_path / "resnet18.pt", weights_only=True)
        kept = Ticket.load(run / "superposed.arrow").state_dict()
        for name in ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.1.bn2.weight"):
            assert torch.equal(kept[name], loaded[name])


def test_a_search_compares_the_metric_of_its_task(ray_address, tmp_path):
    overrides = [
        *CASES["regression"],
        *TINY,
        f"storage={tmp_path}",
        "search.space={superposition.method: {grid_search: [cia, caa]}}",
    ]
    found = tune(load_config({**BASE, "name": "search"}, overrides)).result
    assert (found["metric"], found["mode"]) == ("validation_mean_squared_error", "min")
    scores = [row["validation_mean_squared_error"] for row in found["trials"]]
    assert found["best"]["validation_mean_squared_error"] == min(scores)
    assert found["best"]["mean_squared_error"] > 0
