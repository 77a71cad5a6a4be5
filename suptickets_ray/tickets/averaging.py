"""Tickets merged into one: connection-aware and -independent averages, pruned back to the target density.

The merge is streaming and pure: an `Accumulator` is a value, merging one more ticket gives a new one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from suptickets_ray.sparse.distributions import apportion
from suptickets_ray.sparse.masks import count_down, top_mask, true_positions
from suptickets_ray.sparse.topology import keep_best
from suptickets_ray.tickets.accumulator import (
    Accumulator,
    FilledValues,
    MeanTensor,
    count_active,
    narrowed,
    start,
    widened,
)
from suptickets_ray.tickets.masked_values import MaskedValues, TicketTensor
from suptickets_ray.tickets.rules import Average, Rule, connection_independent
from suptickets_ray.tickets.ticket import Ticket

FILLED_SHARE = 0.25
"""Averages that are not pruned in between hold a tensor densely if more than this fraction is active."""
_PIECE = 1 << 16
_PRUNE_NAMES = {"each": "every_ticket", "last": "end"}
"""Values of the argument `prune` of `superpose`, with those of `superposition.prune_at`."""


def merge(accumulator: Accumulator | None, ticket: Ticket, rule: Rule) -> Accumulator:
    """Returns the accumulator with one more ticket. The given accumulator is not changed.

    Integer buffers are not averaged: the newest ticket's are used. Only positions that are active in the ticket or in
    the accumulator are computed, because both are 0 elsewhere. If most positions are active, all are computed.

    Raises:
        ValueError: If the ticket is not of the same model.
    """
    if accumulator is None:
        return start(ticket)
    if _form(ticket.parts) != _form(accumulator.mean):
        raise ValueError("tickets must be of one model to be superposed; these differ in names or shapes of tensors.")
    num_tickets = accumulator.num_tickets + 1
    # CAA is about connections: parameters that are not masked are averaged alike by CIA.
    average, plain_average = rule.average, connection_independent if rule.method == "caa" else rule.average
    mean: dict[str, MeanTensor] = {}
    num_active: dict[str, Tensor] = {}
    for name, part in ticket.parts.items():
        old, new = accumulator.mean[name], widened(part)
        if isinstance(new, MaskedValues):
            assert not isinstance(old, Tensor)
            counts = accumulator.num_active[name] if rule.method == "caa" else None
            mean[name], counts = _merge_masked(old, new, num_tickets, average, rule.cima_factor, counts)
            if counts is not None:
                num_active[name] = counts
        elif new.is_floating_point():
            assert isinstance(old, Tensor)
            # CIMA would round a tensor that is not trained, and so equal in all tickets.
            is_equal = rule.method == "cima" and torch.equal(old, new)
            mean[name] = old if is_equal else plain_average(old, new, num_tickets, rule.cima_factor)
        else:
            mean[name] = new
    merged = replace(
        accumulator, mean=mean, num_tickets=num_tickets, num_unpruned=count_active(mean), num_active=num_active
    )
    if (
        rule.prune_at == "end" or rule.method == "caa"
    ):  # CAA keeps unpruned sums: pruning at every ticket or at the end is the same
        return merged.filled_beyond(FILLED_SHARE)
    return replace(merged, mean=_pruned(merged, rule))


def _merge_masked(
    old: MaskedValues | FilledValues,
    new: MaskedValues,
    num_tickets: int,
    average: Average,
    factor: float | None,
    counts: Tensor | None,
) -> tuple[MaskedValues | FilledValues, Tensor | None]:
    """Returns the average, and for CAA the number of tickets in which each entry is active."""
    if isinstance(old, FilledValues):
        # The same bits: where neither is active, every average of two zeros is 0. Piece by piece, in the cache.
        values = torch.empty_like(old.values)
        for begin, newest in _pieces(new):
            piece = slice(begin, begin + len(newest))
            values[piece] = average(old.values[piece], newest, num_tickets, factor)
        active = old.active.index_fill(0, new.positions, True)
        if counts is not None:
            counts = counts.index_add(0, new.positions, torch.ones_like(new.positions, dtype=counts.dtype))
        return FilledValues(new.shape, values, active), counts
    union = _unite(old, new)
    before, newest = _spread(old.values, union.of_first), _spread(new.values, union.of_second)
    values = average(before, newest, num_tickets, factor)
    if counts is not None:
        counts = _spread(counts, union.of_first) + union.of_second
    return MaskedValues(new.shape, union.positions, values), counts


def finish(accumulator: Accumulator, rule: Rule, provenance: Mapping[str, Any]) -> Ticket:
    """Returns the superposed network, pruned to exactly the target density unless fewer weights are active at all."""
    return Ticket.of_parts(narrowed(_pruned(accumulator, rule), accumulator.dtypes), provenance)


def finish_unpruned(accumulator: Accumulator, provenance: Mapping[str, Any]) -> Ticket:
    """Returns the unpruned average: the baseline of stochastic weight averaging.

    Meant for CIA with `prune_at: end`.

    Source: Izmailov et al., 1803.05407.
    """
    return Ticket.of_parts(narrowed(accumulator.sparse()[0], accumulator.dtypes), provenance)


def _form(parts: Mapping[str, MeanTensor]) -> dict[str, tuple[tuple[int, ...], bool]]:
    return {name: (tuple(part.shape), not isinstance(part, Tensor)) for name, part in parts.items()}


@dataclass(frozen=True)
class _Union:
    """The positions that are active in either of two tensors of one shape, and in which of them."""

    positions: Tensor
    """Flat indices, int64 (count,), ascending."""
    of_first: Tensor
    """Bool (count,)."""
    of_second: Tensor
    """Bool (count,)."""


def _unite(first: MaskedValues, second: MaskedValues) -> _Union:
    owners = torch.zeros(math.prod(first.shape), dtype=torch.uint8)
    owners.index_fill_(0, first.positions, 1)
    owners.index_add_(0, second.positions, torch.full_like(second.positions, 2, dtype=torch.uint8))
    positions = true_positions(owners != 0)
    codes = owners.numpy()[positions.numpy()]
    return _Union(positions, torch.from_numpy(codes & 1).bool(), torch.from_numpy(codes & 2).bool())


def _pieces(part: MaskedValues) -> Iterator[tuple[int, Tensor]]:
    """Yields the flat tensor with all its entries in pieces (at most _PIECE,), each with the index of its first."""
    begins = range(0, math.prod(part.shape), _PIECE)
    cuts = [*torch.searchsorted(part.positions, torch.tensor(begins)).tolist(), len(part.positions)]
    for begin, first, last in zip(begins, cuts, cuts[1:], strict=False):
        piece = torch.zeros(min(_PIECE, begins.stop - begin), dtype=part.values.dtype)
        yield begin, piece.index_copy_(0, part.positions[first:last] - begin, part.values[first:last])


def _spread(values: Tensor, places: Tensor) -> Tensor:
    """Returns `values` at the true entries of `places` (count,), in order, and 0 elsewhere."""
    return torch.zeros(len(places), dtype=values.dtype).index_copy_(0, true_positions(places), values)


def _pruned(accumulator: Accumulator, rule: Rule) -> dict[str, TicketTensor]:
    parts, num_active = accumulator.sparse()
    masked = {name: part for name, part in parts.items() if isinstance(part, MaskedValues)}
    if rule.method == "caa":
        for name, part in masked.items():
            masked[name] = replace(part, values=part.values / num_active[name].clamp(min=1))
    if not masked:
        return parts
    sizes = {name: math.prod(part.shape) for name, part in masked.items()}
    total = count_down(rule.density, sum(sizes.values()))
    # Weights that are 0 in all tickets stay 0, even if fewer weights are active than the density allows.
    used = {name: part for name, part in masked.items() if len(part.positions)}
    scores = {name: part.values.abs() for name, part in used.items()}
    if rule.prune_scope == "global":
        if sum(map(len, scores.values())) <= total:
            return parts | masked
        kept = keep_best(scores, total)
    else:
        share = total / sum(accumulator.layer_counts.values())
        quotas = {name: share * count for name, count in accumulator.layer_counts.items()}
        counts = apportion(quotas, sizes, total)
        kept = {name: top_mask(score, min(counts[name], len(score))) for name, score in scores.items()}
    for name, part in masked.items():
        some = true_positions(kept[name]) if name in kept else part.positions
        parts[name] = MaskedValues(part.shape, part.positions[some], part.values[some])
    return parts


def superpose(
    tickets: Sequence[Ticket],
    method: str = "cia",
    *,
    density: float,
    cima_factor: float | None = None,
    prune: str = "each",
    scope: str = "global",
    accuracy: Callable[[Ticket], float] | None = None,
) -> Ticket:
    """Returns the tickets superposed in the given order, at the target density. BatchNorm statistics are averaged.

    Args:
        tickets: At least one. Put the pretrained network first if it counts as a ticket.
        method: A name of `AVERAGES`, or a user-defined `Average` as "package.module:function".
        density: Target density in (0, 1].
        cima_factor: Weight of the newest ticket, for CIMA and for user-defined methods that read it.
        prune: When to prune: "each" ticket, or once after the "last".
        scope: "global", or "layer": every layer keeps the fraction of active weights that it has in the first ticket.
        accuracy: Returns the validation accuracy of a ticket; required by method "greedy" only. Tickets are then added
            best first, and one is kept only if the pruned average with it is as accurate as the best so far.

    Raises:
        ValueError: If there is no ticket, they are of different models, or a setting is wrong.

    Source: Sup-tickets, 2205.15322, section 3.3 and algorithm 1.
    """
    if not tickets:
        raise ValueError("superpose must be given at least one ticket; got none.")
    rule = Rule(method, density, cima_factor, _PRUNE_NAMES.get(prune, prune), scope)
    if (method == "greedy") != (accuracy is not None):
        raise ValueError("superpose must be given accuracy= with method 'greedy', and with no other.")
    accumulator: Accumulator | None = None
    best = -math.inf
    for ticket in tickets if accuracy is None else sorted(tickets, key=accuracy, reverse=True):
        merged = merge(accumulator, ticket, rule)
        found = 0.0 if accuracy is None else accuracy(finish(merged, rule, {}))
        if accumulator is None or accuracy is None or found >= best:
            accumulator, best = merged, found
    assert accumulator is not None
    return finish(accumulator, rule, {"superposed": [ticket.digest for ticket in tickets], "method": method})
