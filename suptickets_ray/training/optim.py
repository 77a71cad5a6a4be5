"""The optimizer and the learning rate of pretraining. The cycles' triangle is in tickets/schedule.py."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.nn import Module
from torch.optim import SGD, Optimizer

from suptickets_ray.config import TrainConfig
from suptickets_ray.lookup import choose

_MILESTONE_FRACTIONS = (1 / 2, 3 / 4)
_DECAY_FACTOR = 0.1


def constant_rate(progress: float) -> float:
    """Returns 1."""
    return 1.0


def multistep_rate(progress: float) -> float:
    """Returns 1, then 0.1 from half of pretraining on, and 0.01 from three quarters on; these are the defaults."""
    return _DECAY_FACTOR ** sum(progress >= fraction for fraction in _MILESTONE_FRACTIONS)


def cosine_rate(progress: float) -> float:
    """Returns half a cosine from 1 to 0. Source: Loshchilov & Hutter, 1608.03983, without restarts."""
    return (1 + math.cos(math.pi * progress)) / 2


LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "multistep": multistep_rate,
    "cosine": cosine_rate,
    "constant": constant_rate,
}


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
    schedule = choose(LR_SCHEDULES, config.lr_schedule, "train.lr_schedule")
    if config.lr_schedule == "multistep":
        milestones = config.lr_milestone_epochs
        if milestones is None:
            milestone_steps = [fraction * total_steps for fraction in _MILESTONE_FRACTIONS]
        else:
            milestone_steps = [epoch * epoch_steps for epoch in milestones]
        passed = sum(step >= milestone for milestone in milestone_steps)
        return config.lr * warmup_factor * (config.lr_decay_factor or _DECAY_FACTOR) ** passed
    return config.lr * warmup_factor * schedule(max(step - warmup_steps, 0) / (total_steps - warmup_steps))


def make_optimizer(model: Module, config: TrainConfig) -> Optimizer:
    """Returns SGD over all parameters; `decay_norm_and_bias=false` exempts vectors from weight decay."""
    decayed, others = list(model.parameters()), []
    if not config.decay_norm_and_bias:
        decayed, others = (
            [parameter for parameter in decayed if parameter.ndim >= 2],
            [parameter for parameter in decayed if parameter.ndim < 2],
        )
    groups = [
        {"params": parameters, "weight_decay": weight_decay}
        for parameters, weight_decay in ((decayed, config.weight_decay), (others, 0.0))
        if parameters
    ]
    return SGD(groups, lr=config.lr, momentum=config.momentum)
