"""Divides the density between layers, and draws masks with an exact count in each layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from suptickets_ray.lookup import choose
from suptickets_ray.sparse.masks import count_down, top_mask

Shapes = Mapping[str, Sequence[int]]


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """Returns the same density for every layer."""
    return dict.fromkeys(shapes, density)


def erdos_renyi(shapes: Shapes, density: float) -> dict[str, float]:
    """Returns densities proportional to (inputs + outputs) / (inputs * outputs), for any kernel size.

    Source: SET, Mocanu et al. 2018, section 2; for convolutions as in RigL, 1911.11134, section 3 (1).
    """
    return _proportional(
        {name: sum(shape[:2]) / math.prod(shape[:2]) for name, shape in shapes.items()}, shapes, density
    )


def erdos_renyi_kernel(shapes: Shapes, density: float) -> dict[str, float]:
    """Returns densities proportional to sum(shape) / prod(shape).

    Source: RigL, 1911.11134, section 3 (1), "Erdos-Renyi-Kernel".
    """
    return _proportional({name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}, shapes, density)


def _proportional(raw: Mapping[str, float], shapes: Shapes, density: float) -> dict[str, float]:
    """Returns densities in the ratio of `raw`; over-full layers become dense.

    The surplus of these layers goes to the others, which are scaled up until the total fits and none is over-full.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        sparse = [name for name in shapes if name not in dense]
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / sum(raw[name] * sizes[name] for name in sparse) if sparse else 0.0
        over_full = {name for name in sparse if scale * raw[name] > 1.0}
        if not over_full:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        # The fullest first: the others may fit once its surplus is redistributed.
        fullest = max(raw[name] for name in over_full)
        dense |= {name for name in over_full if raw[name] == fullest}


DISTRIBUTIONS: dict[str, Callable[[Shapes, float], dict[str, float]]] = {
    "erk": erdos_renyi_kernel,
    "er": erdos_renyi,
    "uniform": uniform,
}


def layer_densities(shapes: Shapes, density: float, distribution: str = "erk") -> dict[str, float]:
    """Returns the density of every layer, in (0, 1], with the total at `density`.

    Args:
        shapes: Layer name to weight shape: (out, in) or (out, in, kh, kw).
        density: Fraction of active weights over all layers, in (0, 1].
        distribution: A name of `DISTRIBUTIONS`.

    Raises:
        ValueError: If the density is out of range or the distribution unknown.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1]; got {density}.")
    distribute = choose(DISTRIBUTIONS, distribution, "distribution")
    return dict.fromkeys(shapes, 1.0) if density == 1 else distribute(shapes, density)


def apportion(
    quotas: Mapping[str, float],
    capacities: Mapping[str, int],
    total: int,
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Returns whole counts near `quotas` that sum to exactly `total`, each in [least, capacity].

    Quotas are rounded down, then the missing counts go to the largest remainders, earlier layers first
    (largest-remainder method), so that no layer is emptied and the model's density is exact.

    Args:
        quotas: Desired counts, fractional, summing to about `total`.
        capacities: Number of positions of each layer.
        total: Count to divide, in [sum of the least, sum of capacities].
        least: Minimum count of each layer; 1 when left out.

    Raises:
        ValueError: If `total` cannot be divided.
    """
    least = dict.fromkeys(quotas, 1) if least is None else least
    if not sum(least.values()) <= total <= sum(capacities.values()):
        raise ValueError(
            f"the number of active weights must be in [{sum(least.values())}, {sum(capacities.values())}], so that "
            f"every layer keeps one; got {total}. Choose a higher density."
        )
    emptied = [name for name, quota in quotas.items() if count_down(quota, 1) < least[name]]
    if emptied:
        warnings.warn(
            f"the density would leave {', '.join(emptied)} empty; each keeps a connection. Choose a higher density.",
            stacklevel=3,
        )
    counts = {name: min(max(count_down(quota, 1), least[name]), capacities[name]) for name, quota in quotas.items()}
    while (missing := total - sum(counts.values())) != 0:
        sign = 1 if missing > 0 else -1
        movable = [name for name in counts if least[name] <= counts[name] + sign <= capacities[name]]
        movable.sort(key=lambda name: sign * (counts[name] - quotas[name]))
        for name in movable[: abs(missing)]:
            counts[name] += sign
    return counts


def share_out(
    shares: Mapping[str, float], capacities: Mapping[str, int], total: int, least: Mapping[str, int]
) -> dict[str, int]:
    """Returns whole counts in the ratio of `shares` that sum to exactly `total`, none beyond its layer's capacity.

    The surplus of a full layer is divided among the others. If all remaining layers have a share of 0, or a share is
    not finite, they are filled in the ratio of their capacities.

    Raises:
        ValueError: If `total` is above the sum of capacities, or below the sum of `least`.
    """
    shares = {name: max(share, 0.0) for name, share in shares.items()}
    if not all(map(math.isfinite, shares.values())):
        shares = dict.fromkeys(shares, 0.0)
    quotas: dict[str, float] = {}
    remaining = total
    while open_names := [name for name in shares if name not in quotas]:
        sum_of_shares = sum(shares[name] for name in open_names)
        if sum_of_shares == 0:
            shares = {**shares, **{name: float(capacities[name]) for name in open_names}}
            sum_of_shares = sum(shares[name] for name in open_names)
        fair = {name: shares[name] * remaining / sum_of_shares if sum_of_shares else 0.0 for name in open_names}
        full = [name for name in open_names if fair[name] > capacities[name]]
        if not full:
            quotas |= fair
        for name in full:
            quotas[name] = capacities[name]
            remaining -= capacities[name]
    return apportion({name: quotas[name] for name in shares}, capacities, total, least)


def layer_counts(shapes: Shapes, density: float, distribution: str = "erk") -> dict[str, int]:
    """Returns the number of active weights of every layer; they sum to exactly floor(density * all weights).

    Raises:
        ValueError: As `layer_densities`, and if there are fewer active weights than layers.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    densities = layer_densities(shapes, density, distribution)
    quotas = {name: densities[name] * sizes[name] for name in shapes}
    return apportion(quotas, sizes, count_down(density, sum(sizes.values())))


def random_masks(counts: Mapping[str, int], shapes: Shapes, generator: Generator) -> dict[str, Tensor]:
    """Returns masks with exactly `counts` random active positions in each layer, drawn on the generator's device."""
    return {
        name: top_mask(torch.rand(tuple(shape), generator=generator, device=generator.device), counts[name])
        for name, shape in shapes.items()
    }
