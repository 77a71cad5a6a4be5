"""Detects a training that has diverged."""

from __future__ import annotations

import torch

from suptickets_ray.config import TrainConfig
from suptickets_ray.training.loop import Learner


class DivergedError(RuntimeError):
    """A loss or a weight is NaN or infinite, which later epochs cannot repair."""


def check_finite(learner: Learner, section: TrainConfig, epoch: int, bad_step: int | None) -> None:
    """Raises an error if pretraining has diverged.

    Args:
        learner: The trained learner.
        section: The recipe's training settings.
        epoch: Number of epochs so far.
        bad_step: First step of the last epoch, from 1, whose loss was not finite; None if there is none. With loss
            scaling such a step is skipped, so only the weights are checked.

    Raises:
        DivergedError: If the loss or a weight is not finite.
    """
    tensors = [tensor for tensor in learner.model.state_dict().values() if tensor.is_floating_point()]
    # One result for all tensors: each transfer to the host makes a GPU wait.
    finite = bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
    if finite and (bad_step is None or learner.scaler.is_enabled()):
        return
    where = f"a weight is not finite after epoch {epoch}"
    if bad_step is not None:
        where = f"the loss is not finite from step {bad_step} of epoch {epoch} on"
    raise DivergedError(
        f"Cannot continue: pretraining has diverged, because {where}. Lower train.lr ({section.lr:g}), clip gradients "
        "with train.clip_norm=1, or check the inputs for extreme values."
    )
