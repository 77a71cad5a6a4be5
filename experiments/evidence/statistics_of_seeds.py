"""Paired statistics over seeds: nothing here knows where the numbers come from."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

_MOST_EXACT = 16
"""Up to so many pairs all sign changes are gone through; beyond, random ones."""


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds, in the unit of its values."""

    mean: float
    standard_error: float
    n: int
    p: float
    """Two-sided, of the sign-flip permutation test of the mean."""


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error, nan for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Returns first - second over the seeds that both have.

    Raises:
        ValueError: If no seed has both.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise ValueError("paired differences must have a seed in common; there is none.")
    values = [first[seed] - second[seed] for seed in seeds]
    mean, error = mean_and_error(values)
    return Difference(mean, error, len(values), permutation_p(values))


@dataclass(frozen=True)
class Spread:
    """A difference measured on several splits of the data, under a few seeds each; in the unit of its values."""

    mean: float
    deviation: float
    """Standard deviation over splits of the means over seeds."""
    between: float
    """What remains of it without the seeds' part, which few seeds leave in their mean: the splits' own."""
    splits: int

    @classmethod
    def of(cls, differences: Sequence[Difference]) -> Spread:
        """Returns the spread of two splits at least.

        Source: the method of moments for one-way random effects, unweighted.
        """
        means = [difference.mean for difference in differences]
        deviation = statistics.stdev(means)
        seeds = statistics.fmean(difference.standard_error**2 for difference in differences)
        return cls(statistics.fmean(means), deviation, math.sqrt(max(0.0, deviation**2 - seeds)), len(means))

    def apart(self, mean: float, standard_error: float) -> float:
        """Returns how many standard errors a difference found on one more split lies from the mean of these.

        Args:
            mean: The other split's.
            standard_error: Its, over seeds.
        """
        variance = self.between**2 + standard_error**2 + self.deviation**2 / self.splits
        return abs(self.mean - mean) / math.sqrt(variance)


def permutation_p(values: Sequence[float]) -> float:
    """Returns the share of sign changes of paired differences whose mean is at least as far from 0 as the given one.

    All sign changes of up to 16 pairs, so that the smallest share for n pairs is 2 / 2**n; beyond, 65,536 drawn ones.
    """
    observed = abs(sum(values)) - 1e-12
    if len(values) <= _MOST_EXACT:
        changes: Iterable[Sequence[int]] = product((1, -1), repeat=len(values))
    else:
        generator = random.Random(0)  # noqa: S311 - a statistic, no secret
        changes = (generator.choices((1, -1), k=len(values)) for _ in range(2**_MOST_EXACT))
    hits = [abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) >= observed for signs in changes]
    return sum(hits) / len(hits)
