"""Pruning and drop-and-grow as functions that return new masks; their inputs do not change."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from suptickets_ray.lookup import choose, choose_or_import
from suptickets_ray.sparse.criteria import GROW_SCORES, RANKED_OVER_ALL_LAYERS, REDISTRIBUTIONS, SALIENCY_SCORES, Layer
from suptickets_ray.sparse.distributions import share_out
from suptickets_ray.sparse.masks import Tensors, count_down, count_up, num_positions, num_true, top_mask, top_masks


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
    gradient_weight: float = 1.0,
    gradient_share: float = 0.5,
) -> dict[str, Tensor]:
    """Returns new masks in which a fraction of every layer's connections is exchanged at equal density.

    In each layer ceil(fraction * active) connections are dropped (with drop="threshold" that fraction of all layers
    together). Exactly as many are grown, over all layers together, among the positions that are inactive after the
    drop, so a dropped connection may return. No layer is emptied; a warning names the layers that this rule keeps.

    Args:
        weights: Parameter name to weight, of any shapes.
        masks: Parameter name to bool mask of the weight's shape.
        fraction: Fraction of the active connections to exchange, in [0, 1].
        drop: A name of `SALIENCY_SCORES`, or "package.module:function".
        grow: A name of `GROW_SCORES`, or "package.module:function".
        redistribution: Division of the grown connections between layers: a name of `REDISTRIBUTIONS`, or
            "package.module:function".
        gradients: Dense gradients, averaged over ranks; needed by gradient and mixed growth and by MEST's drop.
        momenta: Running averages of the dense gradients; needed by the momentum criteria.
        explored: Masks of the positions that have ever been active; needed by random_unfired growth.
        generator: Source of randomness; needed by random growth.
        gradient_weight: MEST's lambda, at least 0.
        gradient_share: Fraction of the connections grown by "mix" that is chosen by gradient, in [0, 1].

    Returns:
        New bool masks with as many active connections as the old ones, in each layer if redistribution is "none". The
        inputs do not change.

    Raises:
        ValueError: If the fraction is out of range, a name is unknown, or a score lacks what it needs.

    Source: SET (Mocanu et al. 2018); RigL, 1911.11134, algorithm 1; redistribution: 1907.04840, algorithm 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the drop fraction must be in [0, 1]; got {fraction}.")
    drop_score = choose_or_import(SALIENCY_SCORES, drop, "drop score")
    grow_score = choose_or_import(GROW_SCORES, grow, "grow score")
    share_of = choose_or_import(REDISTRIBUTIONS, redistribution, "redistribution")

    def layer(name: str, mask: Tensor, count: int) -> Layer:
        return Layer(
            name,
            weights[name].detach(),
            mask,
            count,
            gradients[name] if gradients is not None else None,
            momenta[name] if momenta is not None else None,
            explored[name] if explored is not None else None,
            generator,
            gradient_weight,
            gradient_share,
        )

    active = {name: num_true(mask) for name, mask in masks.items()}
    if drop in RANKED_OVER_ALL_LAYERS:
        scores = [drop_score(layer(name, mask, 0)) for name, mask in masks.items()]
        num_kept = sum(active.values()) - count_up(fraction, sum(active.values()))
        kept = dict(zip(masks, top_masks(scores, num_kept, list(masks.values())), strict=True))
    else:
        dropped = {name: count_up(fraction, count) for name, count in active.items()}
        kept = {
            name: top_mask(drop_score(layer(name, mask, dropped[name])), active[name] - dropped[name], among=mask)
            for name, mask in masks.items()
        }
    remaining = {name: num_true(mask) for name, mask in kept.items()}
    grown = share_out(
        {name: share_of(layer(name, mask, active[name] - remaining[name])) for name, mask in masks.items()},
        capacities={name: mask.numel() - remaining[name] for name, mask in masks.items()},
        least={name: int(remaining[name] == 0 and active[name] > 0) for name in masks},
        total=sum(active.values()) - sum(remaining.values()),
    )
    return {
        name: kept[name] | top_mask(grow_score(layer(name, kept[name], grown[name])), grown[name], among=~kept[name])
        for name in masks
    }


SCOPES: dict[str, str] = {
    "global": "rank the weights of all layers together",
    "layer": "rank the weights of each layer separately",
}


def prune_to_density(
    weights: Tensors, density: float, *, scope: str = "global", masks: Tensors | None = None
) -> dict[str, Tensor]:
    """Returns masks of the largest weights by magnitude, with an exact count.

    Among equals the lower index wins. Every layer keeps at least one connection; a warning names the layers that would
    be empty.

    Args:
        weights: Parameter name to weight, of any shapes.
        density: Fraction to keep, in (0, 1].
        scope: "global" ranks all weights together and keeps floor(density * all of them); "layer" keeps
            floor(density * its weights) in every layer.
        masks: Active positions; all others rank below them, also below an active weight of 0.

    Raises:
        ValueError: If the density is out of range or leaves fewer connections than layers, or the scope is unknown.

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
        _warn_about_emptied(emptied)
    scores = _magnitudes(weights, masks)
    return {name: top_mask(scores[name], max(counts[name], 1)) for name in weights}


def prune_to_count(weights: Tensors, count: int, masks: Tensors | None = None) -> dict[str, Tensor]:
    """Returns masks of the `count` largest weights of all layers together; every layer keeps at least one.

    Raises:
        ValueError: If `count` is below the number of layers or above the number of weights.
    """
    return keep_best(_magnitudes(weights, masks), count)


def keep_best(scores: Tensors, count: int) -> dict[str, Tensor]:
    """Returns masks of the `count` best scores of all layers together; every layer keeps at least one.

    Raises:
        ValueError: If `count` is below the number of layers or above the number of positions.
    """
    if not len(scores) <= count <= num_positions(scores):
        raise ValueError(
            f"the number of active weights must be in [{len(scores)}, {num_positions(scores)}], so that every layer "
            f"keeps one; got {count}. Choose a higher density."
        )
    masks = dict(zip(scores, top_masks(list(scores.values()), count), strict=True))
    emptied = [name for name, mask in masks.items() if not bool(mask.any())]
    if emptied:
        _warn_about_emptied(emptied)
        # Each layer's best comes first; the others compete for the remaining count, which stays exact.
        raised = [score.masked_fill(top_mask(score, 1), torch.inf) for score in scores.values()]
        masks = dict(zip(scores, top_masks(raised, count), strict=True))
    return masks


def _magnitudes(weights: Tensors, masks: Tensors | None) -> dict[str, Tensor]:
    magnitudes = {name: weight.detach().abs() for name, weight in weights.items()}
    if masks is None:
        return magnitudes
    # A diverged active weight counts as 0, which is still above every inactive one.
    return {
        name: m.nan_to_num_(nan=0.0, posinf=torch.inf).masked_fill_(~masks[name], -1.0)
        for name, m in magnitudes.items()
    }


def _warn_about_emptied(layers: list[str]) -> None:
    warnings.warn(
        f"pruning would have emptied {', '.join(layers)}; each keeps its largest weight. Choose a higher density.",
        stacklevel=4,
    )
