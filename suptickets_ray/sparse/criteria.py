"""Scores that say how good a connection is. How many are dropped or grown is decided in topology.py.

A new criterion is one function and one row. Code of your own is named "package.module:function".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Layer:
    """What a score may look at: one layer's tensors, all of the weight's shape."""

    name: str
    weight: Tensor
    mask: Tensor
    gradient: Tensor | None = None
    """Dense gradient, averaged over ranks."""
    momentum: Tensor | None = None
    """Optimizer momentum, where the caller of `drop_and_grow` gives it; the Sparsifier does not."""
    explored: Tensor | None = None
    """True where a connection has ever been active, where the caller gives it; the Sparsifier does not."""
    generator: Generator | None = None


Score = Callable[[Layer], Tensor]
"""A layer to scores of the weight's shape; the highest stay, or are grown."""


def keep_magnitude(layer: Layer) -> Tensor:
    """Returns |w|: the smallest weights are dropped. Source: Han et al., 1506.02626."""
    return layer.weight.abs()


def grow_random(layer: Layer) -> Tensor:
    """Returns uniform scores, so that any set of free positions is equally likely. Source: SET, Mocanu et al. 2018."""
    if layer.generator is None:
        raise ValueError("random growth must be given a generator; got none. Pass generator=torch.Generator().")
    scores = torch.rand(layer.weight.shape, generator=layer.generator, device=layer.generator.device)
    return scores.to(layer.weight.device)


def grow_gradient(layer: Layer) -> Tensor:
    """Returns |dL/dw| of the dense gradient. Source: RigL, 1911.11134, section 3 (4)."""
    if layer.gradient is None:
        raise ValueError(f"gradient growth must be given the dense gradient of {layer.name!r}; got none.")
    return layer.gradient.abs()


DROP_SCORES: dict[str, Score] = {"magnitude": keep_magnitude}
GROW_SCORES: dict[str, Score] = {"gradient": grow_gradient, "random": grow_random}
REDISTRIBUTIONS: dict[str, str] = {"none": "every layer grows as many connections as it dropped"}
