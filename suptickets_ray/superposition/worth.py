"""Whether superposing was worth it, in words. Chance has the first say."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

# Student's t for 95 % in the middle, by degrees of freedom from 1; it goes on falling, to 1.96.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)
_NORMAL, _LEVEL, _EXACT_UP_TO = 1.96, 0.05, 1000

WORTH_IT = "superposing was worth it"
"""The best answer."""
Outcome = Literal["gain", "loss", "open"]


class Gain(NamedTuple):
    """How far the sup-ticket's test accuracy lies above another network's."""

    mean: float
    """a fraction."""
    error: float | None = None
    """Its standard error; None where nothing tells it."""
    num_runs: int = 1
    """Runs that the error is over; where it is 1, the error is over the examples of the test set, which are many."""
    only_one_right: tuple[int, int] | None = None
    """Test examples that the sup-ticket alone gets right, and those that the other network alone does, of one run."""

    @property
    def may_be_chance(self) -> bool:
        """Whether nothing at all is within the two-sided 5 %: of McNemar's test in a run, of Student's over runs."""
        if self.only_one_right is not None and self.num_runs == 1:
            return _sign_test(*self.only_one_right) > _LEVEL
        return self.error is not None and abs(self.mean) <= self.error * self._factor

    @property
    def _factor(self) -> float:
        if self.num_runs < 2:
            return _NORMAL
        return _STUDENT[min(self.num_runs - 1, len(_STUDENT)) - 1]

    def points(self) -> str:
        """Returns it in words, e.g. "1.25 ± 0.31 points above"."""
        known = self.error is not None and math.isfinite(self.error)
        error = f" ± {100 * (self.error or 0.0):.2f}" if known else ""
        return f"{abs(100 * self.mean):.2f}{error} points {'above' if self.mean >= 0 else 'below'}"


def _sign_test(first: int, second: int) -> float:
    """How often a fair coin falls at least as unevenly, thrown that many times."""
    thrown, fewer = first + second, min(first, second)
    if thrown > _EXACT_UP_TO:
        return math.erfc(abs(first - second) / math.sqrt(2 * thrown))
    ways = sum(math.comb(thrown, heads) for heads in range(fewer + 1))
    return min(1.0, float(2 * ways / 2**thrown))


def answer(over_pretraining: Gain, over_best_ticket: Gain) -> tuple[str, Outcome]:
    """Returns the answer, as the beginning of a sentence, and which one it is."""
    if over_pretraining.may_be_chance:
        return "superposing changed nothing beyond chance", "open"
    if over_pretraining.mean <= 0:
        return "superposing was not worth it", "loss"
    if over_best_ticket.may_be_chance:
        return "superposing beat pretraining; from the best single ticket it differs by no more than chance", "gain"
    if over_best_ticket.mean < 0:
        return "superposing beat pretraining, but not the best single ticket", "open"
    return WORTH_IT, "gain"
