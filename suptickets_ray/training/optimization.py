"""The optimizer and the learning rate of phase one. The cycles' triangle stands in tickets/cycles.py."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.nn import Module
from torch.optim import SGD, Optimizer

from suptickets_ray.config import TrainConfig
from suptickets_ray.lookup import choose


def constant_rate(progress: float) -> float:
    """Returns 1."""
    return 1.0


def multistep_rate(progress: float) -> float:
    """Returns 1, then 0.1 from half of phase one on, and 0.01 from three quarters on."""
    return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


def cosine_rate(progress: float) -> float:
    """Returns half a cosine from 1 to 0. Source: Loshchilov & Hutter, 1608.03983, without restarts."""
    return (1 + math.cos(math.pi * progress)) / 2


LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "multistep": multistep_rate,
    "cosine": cosine_rate,
    "constant": constant_rate,
}


def phase_one_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Returns the learning rate of optimizer step `step` of `total_steps`, counted from 0.

    Raises:
        ValueError: If the schedule is unknown.
    """
    return config.lr * choose(LR_SCHEDULES, config.lr_schedule, "train.lr_schedule")(step / total_steps)


def make_optimizer(model: Module, config: TrainConfig) -> Optimizer:
    """Returns SGD over all parameters of the model."""
    return SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
