"""Initial masks: random masks for the layers' shapes, or masks chosen by the initial weights and a first gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from suptickets_ray.lookup import choose
from suptickets_ray.sparse.distributions import layer_counts, random_masks, share_out
from suptickets_ray.sparse.masks import Tensors, count_down, num_active, num_positions
from suptickets_ray.sparse.topology import drop_and_grow, keep_best, prune_layers, prune_to_count

LAST_LINEAR_DENSITY = 0.2
"""Minimum density of the last linear layer under uniform pruning. Source: Gale et al., 1902.09574, section 4."""


@dataclass(frozen=True)
class Start:
    """Inputs of an initial mask."""

    weights: Tensors
    """The initial weights of the model's layers, in order."""
    density: float
    """Fraction of active weights, in (0, 1]."""
    generator: Generator
    gradients: Tensors | None = None
    """Dense gradients of a first batch."""
    regrow_fraction: float = 0.5
    """Fraction of the pruned network that "prune_and_grow" exchanges by gradient."""
    last_linear: str | None = None
    """Name of the last linear layer's weight."""
    output_dimensions: Mapping[str, int] = field(default_factory=dict)
    """Dimension of each weight that counts its output channels, where that is not 0."""


def draw_erk(start: Start) -> dict[str, Tensor]:
    """Random, with layer densities by Erdos-Renyi-Kernel. Source: RigL, 1911.11134."""
    return _draw(start, "erk")


def draw_er(start: Start) -> dict[str, Tensor]:
    """Random, with layer densities by Erdos-Renyi, for any kernel size. Source: SET, Mocanu et al. 2018."""
    return _draw(start, "er")


def draw_uniform(start: Start) -> dict[str, Tensor]:
    """Random, with the same density in every layer."""
    return _draw(start, "uniform")


def keep_nonzeros(start: Start) -> dict[str, Tensor]:
    """The non-zero weights of a loaded network, or the largest of them if there are more than requested.

    Raises:
        ValueError: If there are fewer than requested.
    """
    masks = {name: weight.detach() != 0 for name, weight in start.weights.items()}
    count, found = count_down(start.density, num_positions(start.weights)), num_active(masks)
    if found < count:
        raise ValueError(
            f"density must be at most the fraction of non-zero weights, {found / num_positions(masks):.6g}; got "
            f"{start.density:.6g}. Choose that, or check that the weights are loaded."
        )
    return masks if found == count else prune_to_count(start.weights, count, masks)


def prune_global(start: Start) -> dict[str, Tensor]:
    """The largest |w| of all layers together."""
    return prune_to_count(start.weights, count_down(start.density, num_positions(start.weights)))


def prune_uniform(start: Start) -> dict[str, Tensor]:
    """The largest |w| of each layer, at one density; the last linear layer keeps at least 0.2."""
    sizes = {name: weight.numel() for name, weight in start.weights.items()}
    return prune_layers(start.weights, uniform_counts(sizes, start.density, start.last_linear))


def prune_and_grow_global(start: Start) -> dict[str, Tensor]:
    """As prune_global, then a fraction of each layer is exchanged by gradient. Source: GraNet, 2106.10404."""
    return _regrow(start, prune_global(start))


def prune_and_grow_uniform(start: Start) -> dict[str, Tensor]:
    """As prune_uniform, then a fraction of each layer is exchanged by gradient. Source: GraNet, 2106.10404."""
    return _regrow(start, prune_uniform(start))


def snip(start: Start) -> dict[str, Tensor]:
    """The largest |w * dL/dw| of all layers together. Source: Lee et al., 1810.02340."""
    gradients = _gradients(start)
    scores = {name: (weight.detach() * gradients[name]).abs() for name, weight in start.weights.items()}
    return keep_best(scores, count_down(start.density, num_positions(start.weights)))


def prune_structured(start: Start) -> dict[str, Tensor]:
    """Whole output channels, largest mean |w| first: floor(density * channels) of each layer; the last stays dense."""
    return _expand(start, _structured(start))


def prune_and_grow_structured(start: Start) -> dict[str, Tensor]:
    """As prune_structured, then a fraction of each layer's channels is exchanged by their mean |gradient|."""
    masks = _structured(start)
    gradients = _gradients(start)
    grown = drop_and_grow(
        _channel_means(start, {name: start.weights[name] for name in masks}),
        masks,
        start.regrow_fraction,
        gradients=_channel_means(start, {name: gradients[name] for name in masks}),
    )
    return _expand(start, grown)


INITIAL_MASKS: dict[str, Callable[[Start], dict[str, Tensor]]] = {
    "erk": draw_erk,
    "er": draw_er,
    "uniform": draw_uniform,
    "prune_global": prune_global,
    "prune_uniform": prune_uniform,
    "prune_and_grow_global": prune_and_grow_global,
    "prune_and_grow_uniform": prune_and_grow_uniform,
    "snip": snip,
    "from_nonzeros": keep_nonzeros,
    "prune_structured": prune_structured,
    "prune_and_grow_structured": prune_and_grow_structured,
}
"""The values of `method.distribution`."""

REGROWING = frozenset({"prune_and_grow_global", "prune_and_grow_uniform", "prune_and_grow_structured"})
NEED_GRADIENT = REGROWING | {"snip"}
READ_WEIGHTS = NEED_GRADIENT | {"prune_global", "prune_uniform", "prune_structured", "from_nonzeros"}
STRUCTURED = frozenset({"prune_structured", "prune_and_grow_structured"})
"""Exact in channels, so that the fraction of active weights is near, but not equal to, the requested density."""


def initial_masks(distribution: str, start: Start) -> dict[str, Tensor]:
    """Returns the initial masks of the named row of `INITIAL_MASKS`, with exactly floor(density * weights) active.

    Structured ones are exact in channels instead.

    Raises:
        ValueError: If the name is unknown or the density cannot be reached.
    """
    return choose(INITIAL_MASKS, distribution, "distribution")(start)


def uniform_counts(
    capacities: Mapping[str, int],
    density: float,
    last_linear: str | None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Returns the number of weights that each layer keeps under uniform pruning, floor(density * all weights) in total.

    If `density` is below 0.2, the last linear layer keeps 0.2, and the others get equal densities, so that the network
    has the requested density. The sources let it become denser instead, which would not be comparable.

    Args:
        capacities: Maximum of each layer: its size, or its number of active weights.
        density: Fraction of all weights to keep, in (0, 1].
        last_linear: Name of the last linear layer; None if there is none.
        sizes: Number of weights of each layer, if `capacities` differ from it.

    Raises:
        ValueError: If the last linear layer leaves nothing for the others.
    """
    sizes = capacities if sizes is None else sizes
    total = count_down(density, sum(sizes.values()))
    quotas = {name: density * size for name, size in sizes.items()}
    if last_linear is not None and density < LAST_LINEAR_DENSITY and len(sizes) > 1:
        own = count_down(LAST_LINEAR_DENSITY, sizes[last_linear])
        rest = sum(sizes.values()) - sizes[last_linear]
        if total - own < len(sizes) - 1:
            raise ValueError(
                f"density must leave connections for the other layers, as uniform pruning keeps {last_linear!r} at "
                f"{LAST_LINEAR_DENSITY}, that is {own} of {total}; got {density:g}. Choose a higher density, global "
                f"pruning, or dense_layers=[{last_linear!r}]."
            )
        quotas = {name: (total - own) * size / rest for name, size in sizes.items()} | {last_linear: float(own)}
    return share_out(quotas, capacities, total, dict.fromkeys(sizes, 1))


def _draw(start: Start, distribution: str) -> dict[str, Tensor]:
    shapes = {name: tuple(weight.shape) for name, weight in start.weights.items()}
    return random_masks(layer_counts(shapes, start.density, distribution), shapes, start.generator)


def _regrow(start: Start, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return drop_and_grow(start.weights, masks, start.regrow_fraction, gradients=_gradients(start))


def _gradients(start: Start) -> Tensors:
    if start.gradients is None:
        raise ValueError("this distribution must be given the dense gradients of a first batch; got none.")
    return start.gradients


def _channel_means(start: Start, tensors: Tensors) -> dict[str, Tensor]:
    """Returns the mean absolute value of each output channel, (out,)."""
    dimensions = start.output_dimensions
    return {
        name: tensor.detach().abs().movedim(dimensions.get(name, 0), 0).flatten(1).mean(1)
        for name, tensor in tensors.items()
    }


def _structured(start: Start) -> dict[str, Tensor]:
    """Returns masks (out,) of the channels to keep, except for the last layer, whose channels are the outputs."""
    if len(start.weights) < 2:
        raise ValueError("structured pruning must have a layer before the last; this model has none. Choose 'erk'.")
    means = _channel_means(start, {name: start.weights[name] for name in list(start.weights)[:-1]})
    return prune_layers(means, {name: count_down(start.density, mean.numel()) for name, mean in means.items()})


def _expand(start: Start, channels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    masks = {}
    for name, weight in start.weights.items():
        mask = torch.ones_like(weight, dtype=torch.bool)
        if name in channels:
            mask.movedim(start.output_dimensions.get(name, 0), -1).logical_and_(channels[name])
        masks[name] = mask
    return masks
