"""Schedules of densities and drop fractions over training, as functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

from suptickets_ray.lookup import choose


def cubic_density(update: int, first: int, last: int, initial: float, final: float) -> float:
    """Returns the density that pruning has to reach at one update.

    Args:
        update: Index of the update.
        first: Index at or before which the density is `initial`.
        last: Index at and after which the density is exactly `final`; must be above `first`.
        initial: Density in (0, 1] before pruning.
        final: Density in (0, 1] after pruning.

    Raises:
        ValueError: If the window is empty.

    Source: Zhu & Gupta, 1710.01878, section 3, written for density instead of sparsity.
    """
    if last <= first:
        raise ValueError(f"the last pruning update must come after the first; got {first} and {last}.")
    if update <= first:
        return initial
    if update >= last:
        return final
    return final + (initial - final) * (1 - (update - first) / (last - first)) ** 3


def constant_fraction(step: int, total_steps: int, initial: float) -> float:
    """Returns `initial` at every step: the drop fraction of SET (Mocanu et al. 2018)."""
    return initial


def cosine_fraction(step: int, total_steps: int, initial: float, minimum: float = 0.005) -> float:
    """Returns the drop fraction after `step` optimizer steps, annealed by a half cosine.

    It falls from `initial` at step 0 to `minimum` at `total_steps` and stays there.

    Source: Dettmers & Zettlemoyer, 1907.04840, section 3.2; RigL 1911.11134, section 3 (there with minimum 0).
    """
    progress = min(max(step, 0) / total_steps, 1.0)
    return minimum + (initial - minimum) * (1 + math.cos(math.pi * progress)) / 2


def linear_fraction(step: int, total_steps: int, initial: float, minimum: float = 0.005) -> float:
    """Returns the drop fraction on a line from `initial` at step 0 to `minimum` at `total_steps`, then constant."""
    return initial + (minimum - initial) * min(max(step, 0) / total_steps, 1.0)


FRACTIONS: dict[str, Callable[[int, int, float], float]] = {
    "constant": constant_fraction,
    "cosine": cosine_fraction,
    "linear": linear_fraction,
}


def drop_fraction(schedule: str, step: int, total_steps: int, initial: float) -> float:
    """Returns the fraction of active connections to exchange at `step` under the named schedule of `FRACTIONS`.

    Raises:
        ValueError: If the schedule is unknown.
    """
    return choose(FRACTIONS, schedule, "drop-fraction schedule")(step, total_steps, initial)
