"""Scores that rank connections. topology.py decides how many are dropped or grown.

A new criterion takes one function and one row. A user-defined criterion is named "package.module:function".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from suptickets_ray.sparse.masks import num_true, top_mask, true_positions


@dataclass(frozen=True)
class Layer:
    """Inputs of a score: one layer's tensors, all of the weight's shape."""

    name: str
    weight: Tensor
    mask: Tensor
    """Active connections; for a grow score those that remain after the drop."""
    count: int = 0
    """Number of connections to drop or grow."""
    gradient: Tensor | None = None
    """Dense gradient, averaged over ranks."""
    momentum: Tensor | None = None
    """Running average of the dense gradient; unlike the optimizer's momentum it exists off the mask too."""
    explored: Tensor | None = None
    """True where a connection has ever been active."""
    generator: Generator | None = None
    gradient_weight: float = 1.0
    """MEST's lambda."""
    gradient_share: float = 0.5
    """Fraction of the connections grown by "mix" that is chosen by gradient."""


Score = Callable[[Layer], Tensor]
"""Maps a layer to scores of the weight's shape; the highest are kept, or grown."""


def magnitude_score(layer: Layer) -> Tensor:
    """Drops the smallest |w| of each layer. Source: Han et al., 1506.02626."""
    return layer.weight.abs()


def magnitude_by_sign_score(layer: Layer) -> Tensor:
    """Drops the smallest positive and the largest negative weights, in the ratio of the signs' numbers.

    The score is the weight's quantile, (rank + 1/2) / number, among the active weights of its sign. Dropping the lowest
    quantiles divides the count between the signs in the ratio of their numbers (Webster's rule), exactly and
    disjointly. A weight of 0 counts as positive.

    Source: SET, Mocanu et al. 2018, algorithm 1.
    """
    weight = layer.weight.reshape(-1)
    active = layer.mask.reshape(-1)
    scores = torch.zeros(weight.numel(), dtype=torch.float64, device=weight.device)
    for sign in (active & (weight >= 0), active & (weight < 0)):
        positions = true_positions(sign)
        ranks = torch.empty(len(positions), dtype=torch.float64, device=weight.device)
        # Among equal weights the lower index ranks higher and is kept, as everywhere.
        order = weight[positions].abs().flip(0).sort(stable=True).indices
        ranks[len(positions) - 1 - order] = torch.arange(len(positions), dtype=torch.float64, device=weight.device)
        scores[positions] = (ranks + 0.5) / max(len(positions), 1)
    return scores.view(layer.weight.shape)


def keep_above_threshold(layer: Layer) -> Tensor:
    """Drops all weights below one magnitude threshold for all layers, chosen so that the total count is exact.

    Source: Mostafa & Wang, 1902.05967, section 3, with the threshold found exactly instead of adapted slowly.
    """
    return layer.weight.abs()


def magnitude_and_gradient_score(layer: Layer) -> Tensor:
    """Drops the smallest |w| + lambda * |dL/dw| of each layer. Source: MEST, 2110.14032, section 3."""
    return layer.weight.abs() + layer.gradient_weight * _required(layer, "gradient").abs()


def grow_random(layer: Layer) -> Tensor:
    """Grows random free positions; all sets are equally likely. Source: SET, Mocanu et al. 2018."""
    if layer.generator is None:
        raise ValueError("random growth must be given a generator; got none. Pass generator=torch.Generator().")
    scores = torch.rand(layer.weight.shape, generator=layer.generator, device=layer.generator.device)
    return scores.to(layer.weight.device)


def grow_random_unfired(layer: Layer) -> Tensor:
    """Grows random positions that were never active, then others if needed. Source: ITOP, 2102.02887."""
    return grow_random(layer) + ~_required(layer, "explored")


def grow_gradient(layer: Layer) -> Tensor:
    """Grows the largest |dL/dw| of the dense gradient. Source: RigL, 1911.11134, section 3 (4)."""
    return _required(layer, "gradient").abs()


def grow_momentum(layer: Layer) -> Tensor:
    """Grows the largest |running average of the dense gradient|. Source: Dettmers & Zettlemoyer, 1907.04840."""
    return _required(layer, "momentum").abs()


def grow_momentum_neuron(layer: Layer) -> Tensor:
    """Divides growth between output neurons by mean |momentum| over free positions, in each the largest first.

    The j-th best free position of a neuron with mean m scores m / (j - 1/2). So the highest scores divide the count in
    the ratio of the means (Webster's rule), and continue with the other neurons when one is full.

    Source: Dettmers & Zettlemoyer, 1907.04840, section 3.2, by neuron instead of by layer.
    """
    momentum = _required(layer, "momentum").abs().reshape(layer.weight.shape[0], -1).double()
    free = ~layer.mask.reshape(momentum.shape)
    momentum = torch.where(free, momentum, -1.0)
    means = momentum.clamp(min=0).sum(1) / free.sum(1).clamp(min=1)
    order = momentum.sort(dim=1, descending=True, stable=True).indices
    ranks = torch.empty_like(momentum)
    positions = torch.arange(momentum.shape[1], dtype=torch.float64, device=momentum.device)
    ranks.scatter_(1, order, positions.expand_as(momentum))
    return (means[:, None] / (ranks + 0.5)).view(layer.weight.shape)


def grow_mix(layer: Layer) -> Tensor:
    """Grows a fraction by the largest |dL/dw| and the rest at random. Source: the mixed growth of ITOP, 2102.02887."""
    scores = grow_random(layer)
    count = round(layer.gradient_share * layer.count)
    best = top_mask(grow_gradient(layer), count, among=~layer.mask)
    return scores.masked_fill_(best, 2.0)


def share_as_dropped(layer: Layer) -> float:
    """Every layer grows as many connections as it dropped."""
    return float(layer.count)


def share_by_magnitude(layer: Layer) -> float:
    """Layers grow in the ratio of their mean |w| over active connections. Source: as momentum, 1907.04840."""
    return _mean_over_active(layer, layer.weight)


def share_by_nonzeros(layer: Layer) -> float:
    """Layers grow in the ratio of their number of active connections."""
    return float(num_true(layer.mask))


def share_by_momentum(layer: Layer) -> float:
    """Layers grow in the ratio of their mean |momentum| over active connections. Source: 1907.04840, section 3.2."""
    return _mean_over_active(layer, _required(layer, "momentum"))


SALIENCY_SCORES: dict[str, Score] = {
    "magnitude": magnitude_score,
    "set": magnitude_by_sign_score,
    "threshold": keep_above_threshold,
    "mest": magnitude_and_gradient_score,
}
GROW_SCORES: dict[str, Score] = {
    "gradient": grow_gradient,
    "random": grow_random,
    "random_unfired": grow_random_unfired,
    "momentum": grow_momentum,
    "momentum_neuron": grow_momentum_neuron,
    "mix": grow_mix,
}
REDISTRIBUTIONS: dict[str, Callable[[Layer], float]] = {
    "none": share_as_dropped,
    "magnitude": share_by_magnitude,
    "nonzeros": share_by_nonzeros,
    "momentum": share_by_momentum,
}
"""How grown connections are divided between layers. Each maps a layer before its drop to its share, at least 0."""

RANKED_OVER_ALL_LAYERS = frozenset({"threshold"})
"""Drop scores whose connections are ranked over all layers together instead of in each layer."""

_NEEDS: dict[Callable[[Layer], Any], frozenset[str]] = {
    magnitude_and_gradient_score: frozenset({"gradient"}),
    grow_random_unfired: frozenset({"explored"}),
    grow_gradient: frozenset({"gradient"}),
    grow_mix: frozenset({"gradient"}),
    grow_momentum: frozenset({"momentum"}),
    grow_momentum_neuron: frozenset({"momentum"}),
    share_by_momentum: frozenset({"momentum"}),
}


def needs(criterion: Callable[[Layer], Any]) -> frozenset[str]:
    """Returns which costly tensors a criterion reads, of "gradient", "momentum" and "explored".

    A user-defined function declares them in an attribute, e.g. `score.needs = {"momentum"}`. Without the attribute it
    gets the gradient and the explored positions.
    """
    built_in = {*SALIENCY_SCORES.values(), *GROW_SCORES.values(), *REDISTRIBUTIONS.values()}
    return frozenset(
        getattr(criterion, "needs", _NEEDS.get(criterion, () if criterion in built_in else {"gradient", "explored"}))
    )


def _required(layer: Layer, what: str) -> Tensor:
    tensor: Tensor | None = getattr(layer, what)
    if tensor is None:
        names = {"gradient": "dense gradient", "momentum": "dense momentum", "explored": "mask of explored positions"}
        raise ValueError(f"this criterion must be given the {names[what]} of {layer.name!r}; got none.")
    return tensor


def _mean_over_active(layer: Layer, values: Tensor) -> float:
    active = values.reshape(-1)[true_positions(layer.mask)]
    return float(active.abs().mean(dtype=torch.float64)) if len(active) else 0.0
