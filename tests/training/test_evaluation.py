import math

import pytest
import torch
from torch import nn

from suptickets_ray.superposition.gate import Gate
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.data.splits import Splits
from suptickets_ray.training.evaluation import evaluate, measure_predictions, predict, recalibrate
from suptickets_ray.training.tasks import classification


def test_scores_by_hand():
    task, labels = classification(), torch.tensor([0, 1])
    expected = {"accuracy": 0.5, "loss": (math.log(2) + math.log(4)) / 2}
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert measure_predictions(task.predict(logits), labels, task).scores == pytest.approx(expected)
    probabilities = torch.tensor([[0.5, 0.5], [0.75, 0.25]])
    assert measure_predictions(probabilities, labels, task).scores == pytest.approx(expected)


def splits(inputs):
    examples = Examples((inputs, torch.zeros(len(inputs), dtype=torch.long)))
    return Splits(examples, examples, examples, 2, tuple(inputs.shape[1:]))


def test_recalibrated_statistics_are_those_of_the_training_data():
    inputs = torch.randn(700, 3, generator=torch.Generator().manual_seed(0)) * 4 + 2
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    recalibrate(model, splits(inputs), seed=0)
    # two equal batches: the mean of their means is the mean, that of their variances nearly the variance
    assert torch.allclose(model[0].running_mean, inputs.mean(0), atol=1e-5)
    assert torch.allclose(model[0].running_var, inputs.var(0), rtol=0.02)
    assert model[0].momentum == 0.1


def test_recalibrating_twice_gives_the_same_bits():
    inputs = torch.randn(700, 3, generator=torch.Generator().manual_seed(0))
    models = [nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)) for _ in range(2)]
    recalibrate(models[1], splits(inputs + 5), seed=0)
    for model in models:
        recalibrate(model, splits(inputs), seed=0)
    assert torch.equal(models[0][0].running_var, models[1][0].running_var)


class FrozenNorm(nn.Module):
    """One BatchNorm that trains, one that stays in evaluation, and one that the forward pass does not reach."""

    def __init__(self):
        super().__init__()
        self.trained, self.frozen, self.unused, self.head = (*(nn.BatchNorm1d(3) for _ in range(3)), nn.Linear(3, 2))
        for norm in (self.frozen, self.unused):
            norm.running_mean.fill_(7.0)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, inputs):
        return self.head(self.frozen(self.trained(inputs)))


def test_recalibrating_keeps_the_statistics_of_frozen_and_unused_norms():
    inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) + 2
    model = FrozenNorm()
    recalibrate(model, splits(inputs), 0)
    assert model.trained.running_mean == pytest.approx(inputs.mean(0), abs=1e-5)
    assert model.frozen.running_mean.tolist() == model.unused.running_mean.tolist() == [7.0] * 3
    assert [norm.momentum for norm in (model.trained, model.frozen, model.unused)] == [0.1] * 3


def test_predicting_restores_the_mode_of_each_module():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].eval()
    predict(model, splits(torch.ones(4, 3)).train)
    recalibrate(model, splits(torch.randn(8, 3)), 0)
    assert [module.training for module in model] == [False, True, True]


def test_predicting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = predict(model, splits(torch.randn(600, 3)).test)
    assert logits.shape == (600, 2)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert 0 <= evaluate(model, splits(torch.randn(5, 3)).test)["accuracy"] <= 1


@pytest.mark.parametrize(
    ("tolerance", "accuracies", "admitted"),
    [
        (0.005, [0.80, 0.796, 0.794, 0.90, 0.894, 0.895], [True, True, False, True, False, True]),
        (0.0, [0.80, 0.799], [True, False]),
        (None, [0.1, 0.0], [True, True]),
    ],
)
def test_the_gate_compares_with_the_best_so_far(tolerance, accuracies, admitted):
    gate = Gate(tolerance, 0.8)
    assert [gate.admit(accuracy) for accuracy in accuracies] == admitted
