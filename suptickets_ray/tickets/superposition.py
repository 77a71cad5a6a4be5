"""Tickets folded into one: connection-aware and -independent averages, pruned back to the target density.

The fold is streaming and pure: an `Accumulator` is a value, folding one more ticket gives a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from suptickets_ray.lookup import choose
from suptickets_ray.sparse.distributions import apportion
from suptickets_ray.sparse.masks import count_down, num_positions
from suptickets_ray.sparse.topology import SCOPES, prune_layers, prune_to_count
from suptickets_ray.tickets.ticket import Ticket

PRUNE_TIMES: dict[str, str] = {
    "each": "prune to the target density after every ticket",
    "last": "prune once, after all tickets",
}


@dataclass(frozen=True)
class Rule:
    """How tickets are superposed."""

    method: str
    density: float
    cima_factor: float | None = None
    prune: str = "each"
    scope: str = "global"

    def __post_init__(self) -> None:
        """Raises ValueError if a setting is unknown, out of range, or does nothing with the others."""
        choose(AVERAGES, self.method, "superposition method")
        choose(PRUNE_TIMES, self.prune, "superposition.prune")
        choose(SCOPES, self.scope, "prune scope")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1]; got {self.density}.")
        if self.method != "cima" and self.cima_factor is not None:
            raise ValueError(f"superposition.cima_factor has no effect with method {self.method!r}. Leave it out.")
        if self.method == "cima" and (self.cima_factor is None or not 0 < self.cima_factor <= 1):
            raise ValueError(
                f"superposition.cima_factor must be in (0, 1] with method 'cima'; got {self.cima_factor}. "
                "The paper's best is 0.2."
            )


@dataclass(frozen=True)
class Accumulator:
    """What the fold knows of the tickets so far."""

    mean: Mapping[str, Tensor]
    """Running average of every tensor; a sum for CAA's masked weights."""
    masks: Mapping[str, Tensor]
    """Where any ticket so far, or with `prune: each` what survived of them, is active."""
    layer_counts: Mapping[str, int]
    """Active weights of each layer in the first ticket, for `scope: layer`."""
    num_tickets: int
    num_active: Mapping[str, Tensor]
    """CAA: in how many tickets each weight is active, int32 of the weight's shape."""


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


AVERAGES: dict[str, Callable[[Tensor, Tensor, int, float | None], Tensor]] = {
    "cia": connection_independent,
    "caa": connection_aware,
    "cima": connection_independent_moving,
}


def start(ticket: Ticket) -> Accumulator:
    """Returns the fold of one ticket."""
    masks = ticket.masks
    return Accumulator(
        mean=ticket.state_dict(),
        masks=masks,
        layer_counts={name: int(mask.sum()) for name, mask in masks.items()},
        num_tickets=1,
        num_active={name: mask.int() for name, mask in masks.items()},
    )


def fold(accumulator: Accumulator | None, ticket: Ticket, rule: Rule) -> Accumulator:
    """Returns the fold of one more ticket; the given one stays as it was.

    Integer buffers are never averaged: the newest ticket's are taken.

    Raises:
        ValueError: If the ticket is not of the same model.
    """
    if accumulator is None:
        return start(ticket)
    state, masks = ticket.state_dict(), ticket.masks
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in accumulator.mean.items()} or (
        masks.keys() != accumulator.masks.keys()
    ):
        raise ValueError("tickets must be of one model to be superposed; these differ in names or shapes of tensors.")
    num_tickets = accumulator.num_tickets + 1
    mean = {}
    for name, new in state.items():
        # CAA is about connections: parameters that are not masked are averaged alike by CIA.
        method = "cia" if rule.method == "caa" and name not in masks else rule.method
        old = accumulator.mean[name]
        mean[name] = AVERAGES[method](old, new, num_tickets, rule.cima_factor) if new.is_floating_point() else new
    folded = replace(
        accumulator,
        mean=mean,
        masks={name: accumulator.masks[name] | mask for name, mask in masks.items()},
        num_tickets=num_tickets,
        num_active={name: accumulator.num_active[name] + mask for name, mask in masks.items()},
    )
    if rule.prune == "last" or rule.method == "caa":  # CAA keeps unpruned sums, so that pruning each ends like last
        return folded
    state, masks = _pruned(folded, rule)
    return replace(folded, mean=state, masks=masks)


def finish(accumulator: Accumulator, rule: Rule, provenance: Mapping[str, Any]) -> Ticket:
    """Returns the superposed net, pruned to exactly the target density unless fewer weights are active at all."""
    state, masks = _pruned(accumulator, rule)
    return Ticket(state, masks, provenance)


def _pruned(accumulator: Accumulator, rule: Rule) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state = dict(accumulator.mean)
    if rule.method == "caa":
        for name, num_active in accumulator.num_active.items():
            state[name] = state[name] / num_active.clamp(min=1)
    weights = {name: state[name] for name in accumulator.masks}
    if not weights:
        return state, {}
    total = count_down(rule.density, num_positions(weights))
    if rule.scope == "global":
        kept = prune_to_count(weights, total, accumulator.masks)
    else:
        share = total / sum(accumulator.layer_counts.values())
        quotas = {name: share * count for name, count in accumulator.layer_counts.items()}
        sizes = {name: weight.numel() for name, weight in weights.items()}
        kept = prune_layers(weights, apportion(quotas, sizes, total), accumulator.masks)
    # What is 0 in all tickets is not filled up, also where fewer connections are active than may be kept.
    masks = {name: kept[name] & mask for name, mask in accumulator.masks.items()}
    for name, mask in masks.items():
        state[name] = state[name].masked_fill(~mask, 0)
    return state, masks


def superpose(
    tickets: Sequence[Ticket],
    method: str = "cia",
    *,
    density: float,
    cima_factor: float | None = None,
    prune: str = "each",
    scope: str = "global",
) -> Ticket:
    """Returns the tickets superposed in the order given, at the target density. BatchNorm statistics are averaged.

    Args:
        tickets: At least one; the phase-one net first when it is to count.
        method: A name of `AVERAGES`.
        density: Target density in (0, 1].
        cima_factor: Weight of the newest ticket, with CIMA only.
        prune: "each" or "last".
        scope: "global", or "layer": every layer keeps its share of connections of the first ticket.

    Raises:
        ValueError: If there is no ticket, they are of different models, or a setting is wrong.

    Source: Sup-tickets, 2205.15322, section 3.3 and algorithm 1.
    """
    if not tickets:
        raise ValueError("superpose must be given at least one ticket; got none.")
    rule = Rule(method, density, cima_factor, prune, scope)
    accumulator: Accumulator | None = None
    for ticket in tickets:
        accumulator = fold(accumulator, ticket, rule)
    assert accumulator is not None
    return finish(accumulator, rule, {"superposed": [ticket.digest for ticket in tickets], "method": method})
