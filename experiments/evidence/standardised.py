"""Digits as another preprocessing gives them: changes of R1, to see what they move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suptickets_ray.training.data.digits import digits


def per_pixel(split_seed: int) -> dict[str, Any]:
    """Returns the product's digits, every pixel shifted and scaled to mean 0 and variance 1 over the training set.

    A pixel that is always the same in the training set is shifted only. Images stay (1, 8, 8).
    """
    found = digits(split_seed)
    images, _ = found["train"]
    return _scaled(found, images.mean(0), images.std(0))


def whole(split_seed: int) -> dict[str, Any]:
    """Returns the product's digits with one shift and one scale for all pixels: mean 0, variance 1 over the set."""
    found = digits(split_seed)
    images, _ = found["train"]
    return _scaled(found, images.mean(), images.std())


def _scaled(found: dict[str, Any], mean: Tensor, deviation: Tensor) -> dict[str, Any]:
    sets = {name: found[name] for name in ("train", "validation", "test")}
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return {
        "num_classes": found["num_classes"],
        **{name: ((inputs - mean) / scale, labels) for name, (inputs, labels) in sets.items()},
    }
