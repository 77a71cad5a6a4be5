"""How tickets are superposed: connection-aware and -independent averages, and when to prune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from suptickets_ray.lookup import choose, choose_or_import
from suptickets_ray.sparse.topology import SCOPES

Average = Callable[[Tensor, Tensor, int, float | None], Tensor]
"""Takes the average so far, the newest ticket, the number of tickets with it, and cima_factor; returns the new average.

All tensors hold some entries of one weight, so that an average is taken entry by entry.
"""
PRUNE_TIMES: dict[str, str] = {
    "every_ticket": "prune to the target density after every ticket",
    "end": "prune once, after all tickets",
}


@dataclass(frozen=True)
class Rule:
    """How tickets are superposed."""

    method: str
    density: float
    cima_factor: float | None = None
    prune_at: str = "every_ticket"
    prune_scope: str = "global"

    def __post_init__(self) -> None:
        """Raises ValueError if a setting is unknown, out of range, or does nothing with the others."""
        average = self.average
        choose(PRUNE_TIMES, self.prune_at, "superposition.prune_at")
        choose(SCOPES, self.prune_scope, "prune scope")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1]; got {self.density}.")
        is_own = ":" in self.method
        if self.method != "cima" and not is_own and self.cima_factor is not None:
            raise ValueError(f"superposition.cima_factor has no effect with method {self.method!r}. Leave it out.")
        if self.method == "cima" and (self.cima_factor is None or not 0 < self.cima_factor <= 1):
            raise ValueError(
                f"superposition.cima_factor must be in (0, 1] with method 'cima'; got {self.cima_factor}. "
                "The paper's best is 0.2."
            )
        if is_own:
            _check_own(average, self.method, self.cima_factor)

    @property
    def average(self) -> Average:
        """The function of `AVERAGES`, or the user-defined one, that adds a ticket to the average.

        Raises:
            ValueError: If there is none of this name.
        """
        found: Average = choose_or_import(AVERAGES, self.method, "superposition method")
        if self.method in AVERAGES:
            return found

        def apart(old: Tensor, new: Tensor, num_tickets: int, factor: float | None) -> Tensor:
            """Calls a user-defined average with copies, because it may work in place."""
            return found(old.clone(), new.clone(), num_tickets, factor)

        return apart


def connection_independent(old: Tensor, new: Tensor, num_tickets: int, factor: float | None) -> Tensor:
    """Returns the mean over `num_tickets` tickets, zeros counted (CIA), from the mean before the newest one.

    Source: Sup-tickets, 2205.15322, section 3.3 (public code: "CAA").
    """
    return old + (new - old) / num_tickets


def connection_independent_moving(old: Tensor, new: Tensor, num_tickets: int, factor: float | None) -> Tensor:
    """Returns (1 - factor) * old + factor * new (CIMA).

    Source: Sup-tickets, 2205.15322, section 3.3; the paper's beta is 1 - factor.
    """
    assert factor is not None
    return (1 - factor) * old + factor * new


def connection_aware(old: Tensor, new: Tensor, num_tickets: int, factor: float | None) -> Tensor:
    """Returns the sum of the tickets' weights (CAA), which `finish` divides by the number of active ones.

    Source: Sup-tickets, 2205.15322, section 3.3.
    """
    return old + new


def greedy(old: Tensor, new: Tensor, num_tickets: int, factor: float | None) -> Tensor:
    """Returns the mean as CIA does. Tickets come best first; one is kept only if validation accuracy does not drop.

    Source: "greedy soup", Wortsman et al., 2203.05482, section 2, here with pruning after each ticket.
    """
    return connection_independent(old, new, num_tickets, factor)


AVERAGES: dict[str, Average] = {
    "cia": connection_independent,
    "caa": connection_aware,
    "cima": connection_independent_moving,
    "greedy": greedy,
}


def _check_own(average: Average, name: str, factor: float | None) -> None:
    nothing = torch.zeros(3)
    try:
        found = average(nothing, nothing, 2, factor)
    except Exception as error:
        raise ValueError(
            f"superposition.method must be a function of two tensors, the number of tickets and cima_factor; {name!r} "
            f"failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != nothing.shape or found.any():
        raise ValueError(
            f"superposition.method must make zeros of their shape of two tensors of zeros, because what is active in "
            f"no ticket stays 0; {name!r} makes {found}."
        )
