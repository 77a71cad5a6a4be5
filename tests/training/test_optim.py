import inspect
import math

import pytest
import torch
from torch import nn

from suptickets_ray import load_config
from suptickets_ray.config import TrainConfig
from suptickets_ray.training.data import load_data
from suptickets_ray.training.loop import build_learner, order_seed, train_epoch
from suptickets_ray.training.optim import LR_SCHEDULES, count_state, make_optimizer, pretrain_lr


def rates(epochs, epoch_steps=1, **settings):
    config = TrainConfig(epochs=10 * epochs, lr=1.0, **settings)
    return [pretrain_lr(config, step, epoch_steps, epochs) for step in range(epochs * epoch_steps)]


def test_pretraining_rates_by_eye():
    assert rates(8, lr_schedule="constant") == [1.0] * 8
    assert rates(8, lr_schedule="multistep") == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    expected = [1.0, 0.5 + 2**0.5 / 4, 0.5, 0.5 - 2**0.5 / 4]
    assert rates(8, lr_schedule="cosine")[::2] == pytest.approx(expected)
    cycle = rates(10, lr_schedule="one_cycle")
    assert [cycle[0], cycle[3], cycle[5]] == pytest.approx([1 / 25, 1, 0.811747], rel=1e-5)
    assert rates(20, lr_schedule="warmup_cosine")[:3] == pytest.approx([0, 0.5, 1])
    assert rates(20, lr_schedule="warmup_cosine")[11] == pytest.approx(0.5)
    assert set(LR_SCHEDULES) == {"constant", "multistep", "cosine", "one_cycle", "warmup_cosine"}


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


SMALL = ["data.num_train_examples=100", "model.options.widths=[16]", "method.update_interval_steps=2"]
NO_MASKING = {"LBFGS", "SparseAdam", "Optimizer"}
NAMES = sorted(
    name
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and name not in NO_MASKING
)


def trained(name, epochs, content=None):
    """A learner after some epochs of the digits recipe, continued from a stored state, and its state."""
    momentum = [] if name in ("SGD", "sgd") else ["train.lr=0.01"]
    decay = ["train.weight_decay=0"] if name == "Rprop" else []
    config = load_config(None, [*SMALL, *momentum, *decay, f"train.optimizer={name}"])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    first = learner.load_bytes(content)["epoch"] if content else 0
    for epoch in range(first, epochs):
        train_epoch(learner, learner.model, config, splits, order_seed(0, epoch), lambda step: config.train.lr)
    return learner, learner.to_bytes(epoch=epochs)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", *(name for name in NAMES if name != "Muon")])
def test_every_optimizer_keeps_the_masks_and_continues_bit_for_bit(name):
    straight, _ = trained(name, 3)
    resumed, _ = trained(name, 3, trained(name, 1)[1])
    assert straight.sparsifier.num_updates > 0
    assert resumed.ticket({}).digest == straight.ticket({}).digest
    state = straight.optimizer.state_dict()["state"]
    names = [name for name, _ in straight.model.named_parameters()]
    for index, entries in state.items():
        mask = straight.sparsifier.masks.get(names[index])
        for entry in entries.values():
            if mask is not None and getattr(entry, "shape", None) == mask.shape:
                assert not entry[~mask].any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.optimizer=adamm"], "unknown train.optimizer 'adamm'; did you mean 'adam'?"),
        (["train.optimizer=LBFGS"], "train.optimizer must not be 'LBFGS': it evaluates the loss several times"),
        (["train.optimizer=adam", "train.momentum=0.5"], "train.momentum has no effect with train.optimizer 'adam'"),
        (
            ["train.optimizer=adam", "train.optimizer_options={bets: [0.9, 0.95]}"],
            "train.optimizer_options.bets has no effect: 'adam' does not take it; did you mean 'betas'?",
        ),
        (["train.optimizer_options={lr: 0.1}"], "train.optimizer_options must not hold 'lr'. Rename it to train.lr."),
        (["train.optimizer=adam", "train.optimizer_options={betas: [2, 3]}"], "Cannot build train.optimizer 'adam'"),
        (["train.optimizer=Rprop"], "train.weight_decay must be 0 with train.optimizer 'Rprop'"),
        (["train.lr_schedule=one_cycle", "train.warmup_epochs=2"], "warmup_epochs must be 0 with train.lr_schedule"),
        (["train.lr_schedule=math:log"], "Cannot call train.lr_schedule 'math:log': ValueError"),
        (["train.optimizer=torch.nn:Linear"], "train.optimizer must take a learning rate, lr"),
    ],
)
def test_settings_that_do_not_fit_the_optimizer_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        load_config(None, overrides)


def test_another_optimizer_drops_the_momentum_of_the_recipe():
    config = load_config({**MINIMAL, "train": {"epochs": 100, "momentum": 0.5}}, ["train.optimizer=adamw"])
    assert (config.train.momentum, count_state(config.train)) == (None, 2)
    assert (load_config(MINIMAL).train.momentum, count_state(load_config(MINIMAL).train)) == (0.9, 1)


MINIMAL = {
    "name": "a",
    "model": {"name": "mlp"},
    "data": {"name": "digits"},
    "train": {"epochs": 100},
    "method": {"name": "rigl", "density": 0.5},
}


def test_a_user_defined_schedule_gives_the_factor_of_the_rate():
    assert rates(4, lr_schedule="math:exp") == pytest.approx([math.exp(step / 4) for step in range(4)])


def test_weight_decay_may_spare_embeddings_and_positions():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.pos_embed = nn.Embedding(3, 4), nn.Parameter(torch.ones(1, 5, 4))
            self.head = nn.Linear(4, 2)

    config = TrainConfig(epochs=10, optimizer="adamw", decay_norm_and_bias=False)
    decayed, spared = make_optimizer(Model(), config).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 4)]
    assert [tuple(p.shape) for p in spared["params"]] == [(1, 5, 4), (3, 4), (2,)]
