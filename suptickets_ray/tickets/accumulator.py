"""What a merge of tickets holds: a value, made of one ticket, taken apart by tensors and put together again."""

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
    """A masked tensor so much of which is active that all entries are held: cheaper then than to look positions up."""

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
        """Returns the same tensor by its active entries alone."""
        positions = true_positions(self.active)
        return MaskedValues(self.shape, positions, self.values[positions])


MeanTensor = TicketTensor | FilledValues


@dataclass(frozen=True)
class Accumulator:
    """What the merge knows of the tickets so far, at the positions that any of them, or what survived, uses."""

    mean: Mapping[str, MeanTensor]
    """Running average of every tensor; a sum for CAA's masked weights."""
    layer_counts: Mapping[str, int]
    """Active weights of each layer in the first ticket, for `scope: layer`."""
    num_tickets: int
    num_unpruned: int
    """Active weights of all masked tensors before the last pruning."""
    num_active: Mapping[str, Tensor]
    """CAA: in how many tickets each entry that the mean holds is active, int32 (count,), or (n,) where it is filled."""
    dtypes: Mapping[str, torch.dtype]
    """The tickets' own types: half precision is averaged in float32, where a long mean stays the mean."""

    def only(self, names: Container[str]) -> Accumulator:
        """Returns the merge of some tensors alone."""
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
        """Returns mean and num_active by the active entries alone, int32 (count,) the latter."""
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
        """Returns the same with every tensor filled of which more than a share is active."""
        mean, num_active = dict(self.mean), dict(self.num_active)
        for name, part in self.mean.items():
            if isinstance(part, MaskedValues) and len(part.positions) > share * math.prod(part.shape):
                mean[name] = FilledValues.of(part)
                if name in num_active:
                    num_active[name] = MaskedValues(part.shape, part.positions, num_active[name]).dense().view(-1)
        return replace(self, mean=mean, num_active=num_active)


def start(ticket: Ticket) -> Accumulator:
    """Returns the merge of one ticket."""
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
    """Returns the names of tensors of so many entries in at most `count` groups of about equal size, none empty.

    Without pruning in between every tensor is merged by itself, so that groups may be merged apart: `join_shards`
    gives the bits of one merge.
    """
    groups: list[list[str]] = [[] for _ in range(count)]
    totals = [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = totals.index(min(totals))
        groups[smallest].append(name)
        totals[smallest] += sizes[name]
    return [group for group in groups if group]


def join_shards(accumulators: Sequence[Accumulator], names: Iterable[str]) -> Accumulator:
    """Returns the merge of all tensors from the merges of `split_into_shards`, in the order of `names`."""
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
    """Returns half precision as float32, everything else as it is."""
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
