import pytest
import torch
from torch import nn

from suptickets_ray import load_config
from suptickets_ray.config import TrainConfig
from suptickets_ray.training.optim import LR_SCHEDULES, make_optimizer, pretrain_lr


def rates(epochs, epoch_steps=1, **settings):
    config = TrainConfig(epochs=10 * epochs, lr=1.0, **settings)
    return [pretrain_lr(config, step, epoch_steps, epochs) for step in range(epochs * epoch_steps)]


def test_pretraining_rates_by_eye():
    assert rates(8, lr_schedule="constant") == [1.0] * 8
    assert rates(8, lr_schedule="multistep") == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    expected = [1.0, 0.5 + 2**0.5 / 4, 0.5, 0.5 - 2**0.5 / 4]
    assert rates(8, lr_schedule="cosine")[::2] == pytest.approx(expected)
    assert set(LR_SCHEDULES) == {"constant", "multistep", "cosine"}


def test_milestones_and_their_factor_are_those_of_the_recipe():
    found = rates(3, epoch_steps=2, lr_schedule="multistep", lr_milestone_epochs=[1, 2], lr_decay_factor=0.5)
    assert found == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


def test_the_paper_lowers_the_rate_at_epochs_113_and_169_of_226():
    found = rates(226, lr_schedule="multistep", lr_milestone_epochs=[113, 169])
    assert [index for index in range(1, 226) if found[index] != found[index - 1]] == [113, 169]


def test_the_warm_up_rises_in_equal_steps_to_the_full_rate():
    found = rates(4, epoch_steps=2, lr_schedule="constant", warmup_epochs=2)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_a_cosine_starts_after_the_warm_up_and_milestones_count_from_the_start():
    assert rates(6, lr_schedule="cosine", warmup_epochs=2) == pytest.approx([0.5, 1, *rates(4, lr_schedule="cosine")])
    found = rates(6, lr_schedule="multistep", warmup_epochs=2, lr_milestone_epochs=[3])
    assert found == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.lr_milestone_epochs=[3]"], "lr_milestone_epochs has no effect with train.lr_schedule 'cosine'"),
        (["train.lr_decay_factor=0.2"], "lr_decay_factor has no effect with train.lr_schedule 'cosine'"),
        (
            ["train.lr_schedule=multistep", "train.lr_milestone_epochs=[50, 135]"],
            "must be below the 135 epochs of pretraining",
        ),
        (["train.lr_schedule=multistep", "train.lr_milestone_epochs=[50, 20]"], "must be ascending epochs"),
        (["train.warmup_epochs=135"], "warmup_epochs must be below the 135 epochs"),
        (["superposition.batchnorm=average", "superposition.recalibration_examples=10"], "has no effect with"),
        (["train.accumulation_steps=13"], "at least 52, two examples per rank"),
        (["train.precision=half"], "train.precision must be float32 or bfloat16 or float16 or auto; got 'half'"),
    ],
)
def test_schedules_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides)


def test_weight_decay_may_spare_biases_and_normalisation():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    settings = {"epochs": 10, "lr": 1.0, "weight_decay": 0.5, "momentum": 0.0}
    make_optimizer(model, TrainConfig(**settings, decay_norm_and_bias=False)).step()
    for name, parameter in model.named_parameters():
        factor = 0.5 if parameter.ndim >= 2 else 1.0
        assert torch.equal(parameter, factor * before[name]), name
    make_optimizer(model, TrainConfig(**settings)).step()
    assert torch.equal(model[1].weight, 0.5 * before["1.weight"])
