"""The optimizer and the learning rate of pretraining. The cycles' triangle is in tickets/schedule.py."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Module, Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from suptickets_ray.config import TrainConfig
from suptickets_ray.lookup import choose_or_import, suggestion
from suptickets_ray.sparse.eager_sgd import EagerSGD
from suptickets_ray.sparse.maskable import are_decayed
from suptickets_ray.training.user_code import takes

_MILESTONE_FRACTIONS = (1 / 2, 3 / 4)
_DECAY_FACTOR = 0.1
_ONE_CYCLE_RISE, _ONE_CYCLE_START, _ONE_CYCLE_END = 0.3, 1 / 25, 1e-4 / 25
_WARMUP_FRACTION = 0.1


def constant_rate(progress: float) -> float:
    """Returns 1."""
    return 1.0


def multistep_rate(progress: float) -> float:
    """Returns 1, then 0.1 from half of pretraining on, and 0.01 from three quarters on; these are the defaults."""
    return _DECAY_FACTOR ** sum(progress >= fraction for fraction in _MILESTONE_FRACTIONS)


def cosine_rate(progress: float) -> float:
    """Returns half a cosine from 1 to 0. Source: Loshchilov & Hutter, 1608.03983, without restarts."""
    return (1 + math.cos(math.pi * progress)) / 2


def warmup_cosine_rate(progress: float) -> float:
    """Returns a linear rise to 1 over the first tenth, then half a cosine to 0. Another length: cosine, warmup_epochs.

    Source: Loshchilov & Hutter, 1608.03983, after the warm-up of Goyal et al., 1706.02677, section 2.2.
    """
    if progress < _WARMUP_FRACTION:
        return progress / _WARMUP_FRACTION
    return cosine_rate((progress - _WARMUP_FRACTION) / (1 - _WARMUP_FRACTION))


def one_cycle_rate(progress: float) -> float:
    """Returns a rise from 1/25 to 1 over the first three tenths, then a fall to 1/250,000; both half a cosine.

    Source: Smith & Topin, 1708.07120, with the values of torch's OneCycleLR. Deviation: the momentum is not cycled.
    """
    if progress < _ONE_CYCLE_RISE:
        return 1 - (1 - _ONE_CYCLE_START) * cosine_rate(progress / _ONE_CYCLE_RISE)
    fall = cosine_rate((progress - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE))
    return _ONE_CYCLE_END + (1 - _ONE_CYCLE_END) * fall


LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "multistep": multistep_rate,
    "cosine": cosine_rate,
    "warmup_cosine": warmup_cosine_rate,
    "one_cycle": one_cycle_rate,
    "constant": constant_rate,
}
"""Functions from the progress of pretraining, in [0, 1), to a factor of the learning rate."""
_WITH_WARMUP = ("warmup_cosine", "one_cycle")


def find_lr_schedule(config: TrainConfig) -> Callable[[float], float]:
    """Returns the function of the recipe's schedule: a row of `LR_SCHEDULES`, or "package.module:function".

    Raises:
        ValueError: If it is unknown, has a warm-up besides its own, or a user-defined one returns no factor.
    """
    name = config.lr_schedule
    schedule = choose_or_import(LR_SCHEDULES, name, "train.lr_schedule")
    if name in _WITH_WARMUP and config.warmup_epochs:
        raise ValueError(
            f"train.warmup_epochs must be 0 with train.lr_schedule {name!r}, which has a warm-up; got "
            f"{config.warmup_epochs}. Leave it out, or choose 'cosine'."
        )
    for progress in (0.0, 0.5, 0.999) if ":" in name else ():
        try:
            factor = schedule(progress)
            is_valid = 0 <= float(factor) < math.inf
        except Exception as error:
            raise ValueError(f"Cannot call train.lr_schedule {name!r}: {type(error).__name__}: {error}") from error
        if not is_valid:
            raise ValueError(
                f"train.lr_schedule must return a factor of at least 0 for a progress in [0, 1); {name!r} returns "
                f"{factor} for {progress}."
            )
    return schedule


def pretrain_lr(config: TrainConfig, step: int, epoch_steps: int, epochs: int) -> float:
    """Returns the learning rate of an optimizer step of pretraining.

    The warm-up rises linearly and reaches the full rate with its last step (Goyal et al., 1706.02677, section 2.2). A
    cosine starts after it; milestones are counted from the start.

    Args:
        config: The recipe's section.
        step: Optimizer step, from 0.
        epoch_steps: Steps of an epoch.
        epochs: Epochs of pretraining.

    Raises:
        ValueError: If the schedule is unknown.
    """
    warmup_steps, total_steps = config.warmup_epochs * epoch_steps, epochs * epoch_steps
    warmup_factor = min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0
    if config.lr_schedule == "multistep":
        milestones = config.lr_milestone_epochs
        if milestones is None:
            milestone_steps = [fraction * total_steps for fraction in _MILESTONE_FRACTIONS]
        else:
            milestone_steps = [epoch * epoch_steps for epoch in milestones]
        passed = sum(step >= milestone for milestone in milestone_steps)
        return config.lr * warmup_factor * (config.lr_decay_factor or _DECAY_FACTOR) ** passed
    schedule = choose_or_import(LR_SCHEDULES, config.lr_schedule, "train.lr_schedule")
    factor = schedule(max(step - warmup_steps, 0) / (total_steps - warmup_steps))
    return config.lr * warmup_factor * float(factor)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": EagerSGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}
"""Optimizers by short name. Any other class of torch.optim is found by its own name."""
_UNUSABLE = {
    "LBFGS": "it evaluates the loss several times per step",
    "SparseAdam": "it takes sparse gradients only",
}
_OWN_KEYS = ("lr", "momentum", "weight_decay")
"""Arguments of optimizers that are settings of their own."""
_SGD_MOMENTUM = 0.9


def find_optimizer(name: str) -> Callable[..., Optimizer]:
    """Returns a row of `OPTIMIZERS`, a class of torch.optim by its name, or "package.module:function".

    Raises:
        ValueError: If there is none of this name, or it cannot train a masked network step by step.
    """
    if name in _UNUSABLE:
        raise ValueError(f"train.optimizer must not be {name!r}: {_UNUSABLE[name]}. Choose another one.")
    classes = {
        key: found
        for key, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer and key not in _UNUSABLE
    }
    if name in classes:
        return classes[name]
    if name in OPTIMIZERS or ":" in name:
        return choose_or_import(OPTIMIZERS, name, "train.optimizer")
    raise ValueError(
        f"unknown train.optimizer {name!r}{suggestion(name, [*OPTIMIZERS, *classes])} Known: {', '.join(OPTIMIZERS)}, "
        f"and the classes of torch.optim: {', '.join(sorted(classes))}."
    )


def check_optimizer(config: TrainConfig) -> None:
    """Builds the recipe's optimizer for one weight and takes a step.

    Raises:
        ValueError: If it is unknown, has no learning rate, a setting has no effect on it, or it fails.
    """
    make, name = find_optimizer(config.optimizer), config.optimizer
    if not takes(make, "lr"):
        raise ValueError(f"train.optimizer must take a learning rate, lr; {name!r} does not. Choose another one.")
    for key in _OWN_KEYS:
        if key in config.optimizer_options:
            raise ValueError(f"train.optimizer_options must not hold {key!r}. Rename it to train.{key}.")
    known = [key for key in inspect.signature(make).parameters if key not in ("params", *_OWN_KEYS)]
    for key in config.optimizer_options:
        if key == "params" or not takes(make, key):
            raise ValueError(
                f"train.optimizer_options.{key} has no effect: {name!r} does not take it{suggestion(key, known)} "
                f"Known: {', '.join(known) or 'none'}."
            )
    if config.momentum is not None and not takes(make, "momentum"):
        raise ValueError(
            f"train.momentum has no effect with train.optimizer {name!r}, which does not take it. Leave it out."
        )
    if config.weight_decay and not takes(make, "weight_decay"):
        raise ValueError(
            f"train.weight_decay must be 0 with train.optimizer {name!r}, which does not take it; got "
            f"{config.weight_decay:g}."
        )
    count_state(config)


def default_momentum(config: TrainConfig) -> float | None:
    """Returns the recipe's momentum, or the optimizer's default: 0.9 for SGD, None for others."""
    is_sgd = config.momentum is None and find_optimizer(config.optimizer) in (SGD, EagerSGD)
    return _SGD_MOMENTUM if is_sgd else config.momentum


def make_optimizer(model: Module, config: TrainConfig) -> Optimizer:
    """Returns the recipe's optimizer of all trained parameters.

    `decay_norm_and_bias=false` exempts biases, normalization layers, embeddings and positions from weight decay.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed, others = list(parameters.values()), []
    if not config.decay_norm_and_bias:
        is_decayed = are_decayed(model)
        decayed = [parameter for name, parameter in parameters.items() if is_decayed[name]]
        others = [parameter for name, parameter in parameters.items() if not is_decayed[name]]
    groups = [
        {"params": some, "weight_decay": weight_decay}
        for some, weight_decay in ((decayed, config.weight_decay), (others, 0.0))
        if some
    ]
    return _build(config, groups)


def count_state(config: TrainConfig) -> int:
    """Returns how many numbers per weight the recipe's optimizer keeps between steps: 1 for momentum, 2 for Adam.

    Raises:
        ValueError: If the optimizer cannot be built or cannot take a step.
    """
    # A matrix, because some optimizers take no other shape.
    weight = Parameter(torch.ones(2, 3))
    weight.grad = torch.ones(2, 3)
    optimizer = _build(config, [{"params": [weight], "weight_decay": config.weight_decay}])
    try:
        optimizer.step()
    except Exception as error:
        raise ValueError(
            f"Cannot take a step with train.optimizer {config.optimizer!r}: {type(error).__name__}: {error}"
        ) from error
    return sum(1 for value in optimizer.state[weight].values() if getattr(value, "shape", None) == weight.shape)


def _build(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    make = find_optimizer(config.optimizer)
    if not takes(make, "weight_decay"):
        groups = [{"params": [parameter for group in groups for parameter in group["params"]]}]
    momentum = default_momentum(config)
    options = _with_tuples(config.optimizer_options) | ({} if momentum is None else {"momentum": momentum})
    try:
        optimizer = make(groups, lr=config.lr, **options)
    except Exception as error:
        raise ValueError(
            f"Cannot build train.optimizer {config.optimizer!r} with the options {dict(config.optimizer_options)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"train.optimizer must build a torch.optim.Optimizer; {config.optimizer!r} gave {type(optimizer).__name__}."
        )
    if any("lr" not in group for group in optimizer.param_groups):
        raise ValueError(
            f"train.optimizer must read the learning rate from param_groups[...]['lr']; {config.optimizer!r} has none."
        )
    return optimizer


def _with_tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with lists as tuples, which YAML does not have: betas is a pair."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
