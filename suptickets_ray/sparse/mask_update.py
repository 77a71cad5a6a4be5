"""One update of a method's masks: prunes or exchanges connections in the layers that the last step trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Generator, Tensor

from suptickets_ray.sparse.distributions import share_out
from suptickets_ray.sparse.initial_masks import uniform_counts
from suptickets_ray.sparse.masks import Tensors, count_down, num_active, num_positions, num_true
from suptickets_ray.sparse.topology import drop_and_grow, prune_layers, prune_to_count


def prune(
    weights: Tensors,
    masks: Tensors,
    trained: Collection[str],
    density: float,
    *,
    scope: str,
    last_linear: str | None,
) -> dict[str, Tensor]:
    """Returns masks of a lower density; all layers are pruned if the untrained ones alone fill the density.

    Args:
        weights: The masked weights by name.
        masks: Their bool masks.
        trained: Layers that the last step trained; the others keep their masks.
        density: Density to reach over all layers, in (0, 1].
        scope: "global", or "layer" for one density in every layer.
        last_linear: Name of the last linear layer's weight, which stays denser under the scope "layer".
    """
    total = num_positions(weights)
    counts = {name: num_true(mask) for name, mask in masks.items()}
    density = min(density, num_active(masks) / total)  # masks that were given may be sparser than the schedule
    num_kept = count_down(density, total)
    num_untrained = sum(count for name, count in counts.items() if name not in trained)
    num_kept -= num_untrained
    pruned = {name: weight for name, weight in weights.items() if name in trained}
    if not pruned or num_kept < len(pruned):
        pruned, num_kept = dict(weights), num_kept + num_untrained
    own = {name: masks[name] for name in pruned}
    if scope == "global":
        return {**masks, **prune_to_count(pruned, num_kept, own)}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    uniform = uniform_counts(counts, density, last_linear, sizes)
    capacities = {name: counts[name] for name in pruned}
    shares, least = {name: uniform[name] for name in pruned}, dict.fromkeys(pruned, 1)
    return {**masks, **prune_layers(pruned, share_out(shares, capacities, num_kept, least), own)}


def exchange(
    weights: Tensors,
    masks: Tensors,
    trained: Collection[str],
    fraction: float,
    *,
    settings: Mapping[str, Any],
    gradients: Tensors | None,
    momenta: Tensors | None,
    explored: Tensors | None,
    generator: Generator,
) -> dict[str, Tensor]:
    """Returns masks of the same counts with a fraction of each trained layer's connections exchanged.

    Args:
        weights: The masked weights by name.
        masks: Their bool masks.
        trained: Layers that the last step trained; the others keep their masks.
        fraction: Fraction of each layer's connections, in [0, 1].
        settings: Settings of the method: criteria and their weights.
        gradients: Dense gradients, if a criterion reads them.
        momenta: Running averages of gradients, if a criterion reads them.
        explored: Bool masks of the positions that were ever active, if a criterion reads them.
        generator: Source of random growth, on the CPU.
    """
    chosen = {name: mask for name, mask in masks.items() if name in trained}
    if not chosen:
        return dict(masks)
    exchanged = drop_and_grow(
        weights,
        chosen,
        fraction,
        drop=settings["drop"],
        grow=settings["grow"],
        redistribution=settings["redistribution"],
        gradients=gradients,
        momenta=momenta,
        explored=explored,
        generator=generator,
        gradient_weight=settings.get("drop_gradient_weight", 1.0),
        gradient_share=settings.get("grow_gradient_share", 0.5),
    )
    return {**masks, **exchanged}
