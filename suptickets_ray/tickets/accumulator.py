"""The running average of tickets, as a value that can be split by tensors and joined again."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from suptickets_ray.sparse.masks import num_true, true_positions
from suptickets_ray.tickets.masked_values import MaskedValues, TicketTensor
from suptickets_ray.tickets.ticket import Ticket

Value = TypeVar("Value")


@dataclass(frozen=True)
class FilledValues:
    """A masked tensor with all its entries: cheaper than positions if most of them are active."""

    shape: tuple[int, ...]
    values: Tensor
    """All entries, (n,), 0 where nothing is active."""
    active: Tensor
    """Bool (n,)."""

    @classmethod
    def of(cls, part: MaskedValues) -> FilledValues:
        """Returns the same tensor with all its entries."""
        return cls(part.shape, part.dense().view(-1), part.mask().view(-1))

    def sparse(self) -> MaskedValues:
        """Returns the same tensor with its active entries only."""
        positions = true_positions(self.active)
        return MaskedValues(self.shape, positions, self.values[positions])


MeanTensor = TicketTensor | FilledValues


@dataclass(frozen=True)
class Accumulator:
    """The merged tickets so far, at the positions that are active in any ticket, or that pruning kept."""

    mean: Mapping[str, MeanTensor]
    """Running average of every tensor; a sum for CAA's masked weights."""
    layer_counts: Mapping[str, int]
    """Active weights of each layer in the first ticket, for `prune_scope: layer`."""
    num_tickets: int
    num_unpruned: int
    """Active weights of all masked tensors before the last pruning."""
    num_active: Mapping[str, Tensor]
    """For CAA, the number of tickets in which each stored entry is active: int32 (count,), or (n,) if filled."""
    dtypes: Mapping[str, torch.dtype]
    """The tickets' types. Half precision is averaged in float32, which keeps a long mean accurate."""

    def only(self, names: Container[str]) -> Accumulator:
        """Returns the accumulator of some tensors."""
        mean = _only(self.mean, names)
        return Accumulator(
            mean=mean,
            layer_counts=_only(self.layer_counts, names),
            num_tickets=self.num_tickets,
            num_unpruned=count_active(mean),
            num_active=_only(self.num_active, names),
            dtypes=_only(self.dtypes, names),
        )

    def sparse(self) -> tuple[dict[str, TicketTensor], dict[str, Tensor]]:
        """Returns mean and num_active, int32 (count,), with the active entries only."""
        mean: dict[str, TicketTensor] = {}
        num_active = dict(self.num_active)
        for name, part in self.mean.items():
            if isinstance(part, FilledValues):
                mean[name] = gathered = part.sparse()
                if name in num_active:
                    num_active[name] = num_active[name][gathered.positions]
            else:
                mean[name] = part
        return mean, num_active

    def filled_beyond(self, share: float) -> Accumulator:
        """Returns the same with every tensor filled of which more than a fraction is active."""
        mean, num_active = dict(self.mean), dict(self.num_active)
        for name, part in self.mean.items():
            if isinstance(part, MaskedValues) and len(part.positions) > share * math.prod(part.shape):
                mean[name] = FilledValues.of(part)
                if name in num_active:
                    num_active[name] = MaskedValues(part.shape, part.positions, num_active[name]).dense().view(-1)
        return replace(self, mean=mean, num_active=num_active)


def start(ticket: Ticket) -> Accumulator:
    """Returns the accumulator of one ticket."""
    masked = {name: part for name, part in ticket.parts.items() if isinstance(part, MaskedValues)}
    return Accumulator(
        mean={name: widened(part) for name, part in ticket.parts.items()},
        layer_counts={name: len(part.positions) for name, part in masked.items()},
        num_tickets=1,
        num_unpruned=ticket.num_active,
        num_active={name: torch.ones(len(part.positions), dtype=torch.int32) for name, part in masked.items()},
        dtypes={name: _entries(part).dtype for name, part in ticket.parts.items()},
    )


def split_into_shards(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Returns the names of tensors in at most `count` groups of about equal size, none of them empty.

    Without pruning in between, tensors are independent, so that groups can be merged separately: `join_shards`
    returns the bits of a single merge.
    """
    groups: list[list[str]] = [[] for _ in range(count)]
    totals = [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = totals.index(min(totals))
        groups[smallest].append(name)
        totals[smallest] += sizes[name]
    return [group for group in groups if group]


def join_shards(accumulators: Sequence[Accumulator], names: Iterable[str]) -> Accumulator:
    """Returns the accumulator of all tensors from those of `split_into_shards`, in the order of `names`."""
    means, counts, active, dtypes = (
        {name: value for some in accumulators for name, value in getattr(some, field).items()}
        for field in ("mean", "layer_counts", "num_active", "dtypes")
    )
    order = list(names)
    return Accumulator(
        mean={name: means[name] for name in order},
        layer_counts={name: counts[name] for name in order if name in counts},
        num_tickets=accumulators[0].num_tickets,
        num_unpruned=count_active(means),
        num_active={name: active[name] for name in order if name in active},
        dtypes={name: dtypes[name] for name in order},
    )


def count_active(parts: Mapping[str, MeanTensor]) -> int:
    """Returns the number of active weights of all masked tensors."""
    sparse = sum(len(part.positions) for part in parts.values() if isinstance(part, MaskedValues))
    return sparse + sum(num_true(part.active) for part in parts.values() if isinstance(part, FilledValues))


def widened(part: TicketTensor) -> TicketTensor:
    """Returns half precision as float32, and other types unchanged."""
    half = _entries(part).dtype in (torch.float16, torch.bfloat16)
    return _with_dtype(part, torch.float32) if half else part


def narrowed(parts: Mapping[str, TicketTensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, TicketTensor]:
    """Returns the tensors in the types given by name."""
    return {name: _with_dtype(part, dtypes[name]) for name, part in parts.items()}


def _only(values: Mapping[str, Value], names: Container[str]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if name in names}


def _entries(part: TicketTensor) -> Tensor:
    return part.values if isinstance(part, MaskedValues) else part


def _with_dtype(part: TicketTensor, dtype: torch.dtype) -> TicketTensor:
    return replace(part, values=part.values.to(dtype)) if isinstance(part, MaskedValues) else part.to(dtype)
