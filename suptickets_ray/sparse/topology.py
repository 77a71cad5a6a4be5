"""How many and which: pruning and drop-and-grow, planned as new masks; nothing given is changed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from suptickets_ray.lookup import choose, choose_or_import
from suptickets_ray.sparse.criteria import DROP_SCORES, GROW_SCORES, REDISTRIBUTIONS, Layer
from suptickets_ray.sparse.masks import Tensors, count_down, count_up, num_positions, top_mask


def drop_and_grow(
    weights: Tensors,
    masks: Tensors,
    fraction: float,
    *,
    drop: str = "magnitude",
    grow: str = "gradient",
    redistribution: str = "none",
    gradients: Tensors | None = None,
    momenta: Tensors | None = None,
    explored: Tensors | None = None,
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """Returns new masks in which a share of every layer's connections is exchanged at equal density.

    In each layer ceil(fraction * active) connections are dropped, and exactly as many are grown among the positions
    that are inactive after the drop, so one just dropped may return.

    Args:
        weights: Parameter name to weight, of any shapes.
        masks: Parameter name to bool mask of the weight's shape.
        fraction: Share of the active connections to exchange, in [0, 1].
        drop: A name of `DROP_SCORES`, or "package.module:function".
        grow: A name of `GROW_SCORES`, or "package.module:function".
        redistribution: A name of `REDISTRIBUTIONS`.
        gradients: Dense gradients, averaged over ranks; needed by gradient growth.
        momenta: Optimizer momenta, for scores that read them.
        explored: Masks of the positions that have ever been active, for scores that read them.
        generator: Source of randomness; needed by random growth.

    Returns:
        New bool masks with the counts of the old ones; the inputs are untouched.

    Raises:
        ValueError: If the fraction is out of range, a name is unknown, or a score lacks what it needs.

    Source: SET (Mocanu et al. 2018); RigL, 1911.11134, algorithm 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the drop fraction must be in [0, 1]; got {fraction}.")
    drop_score = choose_or_import(DROP_SCORES, drop, "drop score")
    grow_score = choose_or_import(GROW_SCORES, grow, "grow score")
    choose(REDISTRIBUTIONS, redistribution, "redistribution")
    new_masks = {}
    for name, mask in masks.items():
        layer = Layer(
            name,
            weights[name].detach(),
            mask,
            gradients[name] if gradients is not None else None,
            momenta[name] if momenta is not None else None,
            explored[name] if explored is not None else None,
            generator,
        )
        active = int(mask.sum())
        kept = _best_among(drop_score(layer), mask, active - count_up(fraction, active))
        new_masks[name] = kept | _best_among(grow_score(layer), ~kept, active - int(kept.sum()))
    return new_masks


def _best_among(scores: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Returns the mask of the `count` best candidates; other positions are never chosen, whatever their score."""
    chosen = torch.zeros_like(candidates)
    chosen[candidates] = top_mask(scores[candidates], count)
    return chosen


SCOPES: dict[str, str] = {
    "global": "rank the weights of all layers together",
    "layer": "rank the weights of each layer on their own",
}


def prune_to_density(
    weights: Tensors, density: float, *, scope: str = "global", masks: Tensors | None = None
) -> dict[str, Tensor]:
    """Returns masks of the largest weights by magnitude, with an exact count.

    Among equals the lower index wins. Every layer keeps at least one connection; a warning says so when that rule acts.

    Args:
        weights: Parameter name to weight, of any shapes.
        density: Share to keep, in (0, 1].
        scope: "global" ranks all weights together and keeps floor(density * all of them); "layer" keeps
            floor(density * its weights) in every layer.
        masks: Active positions; all others rank below them, also below an active weight that happens to be 0.

    Raises:
        ValueError: If the density or the scope is not one of these, or leaves fewer connections than layers.

    Source: Zhu & Gupta, 1710.01878, section 3.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1]; got {density}.")
    choose(SCOPES, scope, "prune scope")
    if scope == "global":
        return prune_to_count(weights, count_down(density, num_positions(weights)), masks)
    return prune_layers(weights, {name: count_down(density, weight.numel()) for name, weight in weights.items()}, masks)


def prune_layers(weights: Tensors, counts: Mapping[str, int], masks: Tensors | None = None) -> dict[str, Tensor]:
    """Returns masks of the `counts[name]` largest weights of each layer; a count of 0 becomes 1, with a warning."""
    emptied = [name for name in weights if counts[name] == 0]
    if emptied:
        _say_that_the_rule_acts(emptied)
    scores = _magnitudes(weights, masks)
    return {name: top_mask(scores[name], max(counts[name], 1)) for name in weights}


def prune_to_count(weights: Tensors, count: int, masks: Tensors | None = None) -> dict[str, Tensor]:
    """Returns masks of the `count` largest weights of all layers together; every layer keeps at least one.

    Raises:
        ValueError: If `count` is below the number of layers or above the number of weights.
    """
    if not len(weights) <= count <= num_positions(weights):
        raise ValueError(
            f"the number of active weights must be in [{len(weights)}, {num_positions(weights)}], so that every layer "
            f"keeps one; got {count}. Choose a higher density."
        )
    sizes = [weight.numel() for weight in weights.values()]
    scores = torch.cat([score.reshape(-1) for score in _magnitudes(weights, masks).values()])
    parts = top_mask(scores, count).split(sizes)
    emptied = [name for name, part in zip(weights, parts, strict=True) if not bool(part.any())]
    if emptied:
        _say_that_the_rule_acts(emptied)
        # Each layer's best comes first; the rest then compete for what is left, so that the count stays exact.
        for part in scores.split(sizes):
            part[top_mask(part, 1)] = torch.inf
        parts = top_mask(scores, count).split(sizes)
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _magnitudes(weights: Tensors, masks: Tensors | None) -> dict[str, Tensor]:
    magnitudes = {name: weight.detach().abs() for name, weight in weights.items()}
    if masks is None:
        return magnitudes
    return {name: magnitude.masked_fill_(~masks[name], -1.0) for name, magnitude in magnitudes.items()}


def _say_that_the_rule_acts(layers: list[str]) -> None:
    warnings.warn(
        f"pruning would have emptied {', '.join(layers)}; each keeps its largest weight. Choose a higher density.",
        stacklevel=4,
    )
