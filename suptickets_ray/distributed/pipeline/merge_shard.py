"""The actor that merges one shard of every ticket: a fixed subset of its tensors."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import ray

from suptickets_ray.distributed.pipeline.context import WorkerContext, use_driver_paths
from suptickets_ray.tickets.accumulator import Accumulator
from suptickets_ray.tickets.averaging import merge
from suptickets_ray.tickets.rules import Rule
from suptickets_ray.tickets.ticket import Ticket


@ray.remote(num_cpus=0)
class MergeShard:
    """Merges the named tensors of every ticket, in the order of the calls. Each (chain, cycle) is merged only once."""

    def __init__(self, context: WorkerContext, names: Sequence[str], rule: Rule, initial: Accumulator | None) -> None:
        """Starts from the pretrained network, or without a network.

        Args:
            context: What the driver has sent.
            names: Names of the shard's tensors.
            rule: How tickets are superposed; `prune_at` must be "end".
            initial: The merge before the first ticket; None to start without a network.
        """
        use_driver_paths(context)
        self._names, self._rule, self._seen = frozenset(names), rule, set[tuple[int, int]]()
        self._accumulator = initial and initial.only(self._names)

    def merge(self, table: pa.Table, chain: int, cycle: int) -> None:
        """Merges the shard of one ticket. The Arrow table comes from an explorer, or was read and verified."""
        if (chain, cycle) not in self._seen:
            self._seen.add((chain, cycle))
            if Ticket.provenance_of(table).get("diverged"):
                return
            self._accumulator = merge(self._accumulator, Ticket.some_of(table, self._names), self._rule)

    def accumulator(self) -> Accumulator | None:
        """Returns the merge so far."""
        return self._accumulator
