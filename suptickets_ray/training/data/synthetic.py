"""Synthetic images for benchmarks, and for a recipe's preflight without its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from suptickets_ray.lookup import choose
from suptickets_ray.seeding import derive_seed

_PATTERN_SIZE = 32
SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "mnist1d": ((40,), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "imagenet": ((3, 224, 224), 1000),
}
"""Input shape and number of classes of the data sets in which both are fixed."""


def synthetic(
    split_seed: int,
    like: str | None = None,
    shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    num_train: int = 256,
    num_test: int = 64,
    noise: float = 1.0,
) -> dict[str, Any]:
    """Returns learnable uint8 images: a random pattern for each class plus pixel noise.

    Args:
        split_seed: Seed of patterns, labels and noise.
        like: Data set whose shape and number of classes are used, e.g. "cifar100".
        shape: Shape of one image (c, h, w), or of any input; (3, 32, 32) when left out.
        num_classes: Number of classes; 10 when left out.
        num_train: Number of training images; the validation set is taken from them.
        num_test: Number of test images.
        noise: Standard deviation of the noise, relative to that of the patterns.

    Raises:
        ValueError: If sizes are out of range, or both `like` and a shape or number of classes are given.
    """
    if like is not None:
        if shape is not None or num_classes is not None:
            raise ValueError(
                "Cannot combine data.options.like with shape or num_classes: it sets both. Leave one of them out."
            )
        shape, num_classes = choose(SHAPES, like, "data set of known shape")
    shape = (3, 32, 32) if shape is None else tuple(shape)
    num_classes = 10 if num_classes is None else num_classes
    if not shape or min(*shape, num_classes, num_train - 1, num_test) < 1 or not noise >= 0:
        raise ValueError(
            "data.options must hold a shape, num_classes and num_test of at least 1, num_train of at least 2, and "
            f"noise of at least 0; got {shape}, {num_classes}, {num_test}, {num_train} and {noise}."
        )
    generator = Generator().manual_seed(derive_seed(split_seed, "synthetic"))
    # Patterns are coarse, so that those of 1,000 classes of large images take little memory.
    coarse = (*shape[:1], *(min(size, _PATTERN_SIZE) for size in shape[1:]))
    patterns = torch.randn((num_classes, *coarse), generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(num_classes, (count,), generator=generator)
        images = torch.randn((count, *shape), generator=generator).mul_(noise)
        images += patterns[labels] if coarse == shape else interpolate(patterns[labels], size=shape[1:])
        return images.mul_(32).add_(128).clamp_(0, 255).to(torch.uint8), labels

    loaded: dict[str, Any] = {"train": draw(num_train), "test": draw(num_test), "num_classes": num_classes}
    channels = shape[0]
    return loaded | {"mean": (0.5,) * channels, "std": (0.25,) * channels}
