"""The actor that merges some of the layers of every ticket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from suptickets_ray.distributed.pipeline.context import follow
from suptickets_ray.tickets.accumulator import Accumulator
from suptickets_ray.tickets.averaging import Rule, merge
from suptickets_ray.tickets.ticket import Ticket


@ray.remote(num_cpus=0)
class MergeShard:
    """Merges the tensors of its names, ticket by ticket in the order given; keys it has seen are not merged twice."""

    def __init__(self, settings: dict[str, Any], names: Sequence[str], rule: Rule, first: Accumulator | None) -> None:
        """Starts from the pretrained network, or from nothing.

        Args:
            settings: What `worker_settings` gave.
            names: Its tensors.
            rule: How tickets are superposed; prune last.
            first: The merge before any ticket.
        """
        follow(settings)
        self._names, self._rule, self._seen = frozenset(names), rule, set[tuple[int, int]]()
        self._accumulator = first and first.only(self._names)

    def merge(self, table: pa.Table, chain: int, cycle: int) -> None:
        """Merges its tensors of one ticket, given in its Arrow form: from an explorer, or read and checked before."""
        if (chain, cycle) not in self._seen:
            self._seen.add((chain, cycle))
            if Ticket.provenance_of(table).get("diverged"):
                return
            self._accumulator = merge(self._accumulator, Ticket.some_of(table, self._names), self._rule)

    def accumulator(self) -> Accumulator | None:
        """Returns the merge so far."""
        return self._accumulator
