"""Frozen layers keep their weights and statistics through training, and stay dense."""

import copy

import pytest
import torch
from torch import nn

from suptickets_ray import load_config
from suptickets_ray.training.cycle import run_cycle
from suptickets_ray.training.data import load_data
from suptickets_ray.training.evaluation import recalibrate
from suptickets_ray.training.freezing import freeze
from suptickets_ray.training.loop import build_learner, train_epoch
from suptickets_ray.training.preflight import preflight

SMALL = [
    "data.num_train_examples=60",
    "model.options.widths=[16, 16]",
    "method.update_interval_steps=2",
    "model.freeze=['1', '2']",
]


def test_frozen_layers_keep_weights_and_statistics_and_stay_dense():
    config = load_config(None, SMALL)
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    train_epoch(learner, learner.model, config, splits, 0, lambda step: 0.1)
    run_cycle(learner, config, splits, 0, 0)
    recalibrate(learner.model, splits, 0)
    after = learner.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"4", "5", "7"}
    assert list(learner.sparsifier.parameters) == ["4.weight", "7.weight"]
    assert learner.sparsifier.num_updates > 0
    assert not learner.optimizer.state.get(learner.model[1].weight)


@pytest.mark.parametrize(
    "method", [["rigl"], ["granet", "method.density=0.2"], ["dense"], ["static", "method.density=0.2"]]
)
def test_a_frozen_recipe_passes_the_preflight_with_every_kind_of_method(method):
    small = [text for text in SMALL if "interval" not in text]
    preflight(load_config(None, [*small, f"method.name={method[0]}", *method[1:]]))


def test_a_frozen_batchnorm_stays_in_evaluation_also_in_a_copy():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.BatchNorm1d(4), nn.Linear(4, 2))
    freeze(model, ["0"])
    copied = copy.deepcopy(model)
    for one in (model, copied):
        one.train()
        assert [module.training for module in (one, one[0], one[0][1], one[1], one[2])] == [
            True,
            False,
            False,
            True,
            True,
        ]
        one.eval()
        assert not any(module.training for module in one.modules())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layr1"], "model.freeze must match parameters; 'layr1' matches none; did you mean 'layer1'?"),
        (["*"], "model.freeze must leave parameters to train; got *"),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(patterns, message):
    model = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer2": nn.Linear(2, 2)})
    with pytest.raises(ValueError) as error:
        freeze(model, patterns)
    assert message in str(error.value)
