"""Distributes chains of cycles over explorers. Tickets are returned through the object store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from suptickets_ray.distributed.cluster.errors import root_cause
from suptickets_ray.distributed.cluster.polling import POLL_SECONDS
from suptickets_ray.distributed.cluster.retry import should_retry
from suptickets_ray.distributed.pipeline.chains import Chains
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.distributed.pipeline.cycle_order import next_cycle
from suptickets_ray.distributed.pipeline.explorer_pool import (
    CycleEnd,
    CycleFailed,
    CycleFinished,
    CycleLost,
    ExplorerPool,
)
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket_store import Origin, TicketStore

_TICKETS_IN_FLIGHT = 2
"""Finished tickets per explorer that wait in the object store for the superposer. Others wait in the storage."""


class FinishedTicket(NamedTuple):
    """A ticket that is finished."""

    table: Any
    """Object reference of its Arrow table."""
    measured: Any = None
    """Object reference of what its explorer has measured of it; None for a ticket from the storage."""


class Exploration:
    """Assigns cycles to explorers, and returns tickets in any order.

    The driver owns the tickets that explorers return, so they outlive the explorer's process. The storage has a copy of
    everything that is lost with a machine.
    """

    def __init__(
        self,
        context: WorkerContext,
        pretrained: Any,
        cycles: int,
        on_poll: Callable[[], None],
        *,
        pretrained_digest: str,
    ) -> None:
        """Reads what earlier starts of the run have finished. Starts no explorer.

        Args:
            context: What is sent to the explorers. Its recipe sets their number.
            pretrained: Object reference of the final state of pretraining.
            cycles: Cycles per chain.
            on_poll: Called a few times a second while waiting.
            pretrained_digest: The `state_digest` of the state in `pretrained`.
        """
        num_chains, origin = (
            context.config.tickets.num_chains,
            Origin(exploration_key(context.config), pretrained_digest),
        )
        self._cycles, self._on_poll = cycles, on_poll
        self._store = RunStore(context.run_path)
        self._pool = ExplorerPool(context, num_chains)
        self._chains = Chains(self._store, num_chains, cycles, pretrained, origin)
        self._tickets: dict[tuple[int, int], FinishedTicket] = {}
        self._tried: set[tuple[int, int]] = set()
        self._losses: dict[tuple[int, int], int] = {}
        """Number of losses by (chain, cycle). Losses after a preemption notice do not count."""
        self._first_cycles = dict(self._chains.done)
        # An earlier start may have written points to the TensorBoard folders.
        self._has_earlier_scalars = any(path.startswith("chain-") for path in RunStore(context.tensorboard).list(""))

    def __enter__(self) -> Exploration:
        """Starts as many explorers as there is work for."""
        try:
            self._pool.open(self._chains.num_unfinished)
        except BaseException:
            self._pool.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kills the explorers, which frees their CPUs at once."""
        self._pool.close()

    @property
    def restarted(self) -> list[int]:
        """Chains that start again because their files are damaged or belong to another run."""
        return self._chains.restarted

    @property
    def num_stored(self) -> int:
        """Number of tickets that earlier starts have finished."""
        return sum(self._first_cycles.values())

    @property
    def stored_cycles(self) -> tuple[int, ...]:
        """Number of cycles by chain that earlier starts have finished."""
        return tuple(self._first_cycles[chain] for chain in sorted(self._first_cycles))

    @property
    def num_trained(self) -> int:
        """Number of cycles that this start has finished."""
        return self._chains.num_trained

    @property
    def num_states(self) -> int:
        """Number of chain states in memory. Finished chains need none."""
        return self._chains.num_states

    @property
    def num_in_memory(self) -> int:
        """Number of finished tickets in the object store that have not been requested yet."""
        return len(self._tickets)

    @property
    def is_done(self) -> bool:
        """Whether every cycle of every chain is finished."""
        return not self._chains.num_unfinished

    def ticket(self, chain: int, cycle: int) -> FinishedTicket:
        """Returns a ticket. Waits until its cycle is finished.

        The references are not kept, so that memory does not grow with the number of tickets.

        Raises:
            RuntimeError: If a cycle fails permanently.
        """
        while self._chains.done[chain] <= cycle:
            self._dispatch()
            self._collect(POLL_SECONDS)
        if (chain, cycle) in self._tickets:
            return self._tickets.pop((chain, cycle))
        return FinishedTicket(ray.put(TicketStore(self._store).get(chain, cycle).to_arrow()))

    def advance(self) -> None:
        """Collects finished cycles and assigns new ones, without waiting. Call it while waiting for other work.

        Raises:
            RuntimeError: If a cycle fails permanently.
        """
        if self.is_done:
            self._on_poll()
            return
        self._collect(0)
        self._dispatch()

    def forget_tickets(self) -> None:
        """Drops all tickets in memory, because some were lost. They are read from the storage when requested."""
        self._tickets.clear()

    def _dispatch(self) -> None:
        """Assigns cycles to idle explorers."""
        while self._pool.has_idle:
            job = next_cycle(self._chains.done, self._pool.busy_chains, self._cycles)
            if job is None:
                return
            chain, cycle = job
            again = job in self._tried or (self._has_earlier_scalars and cycle == self._first_cycles[chain])
            self._tried.add(job)
            self._pool.run_cycle(self._chains.state_of(chain), chain, cycle, again)

    def _collect(self, seconds: float) -> None:
        """Waits up to `seconds` until an explorer has answered, and handles the answer."""
        answers = self._pool.wait(seconds)
        self._on_poll()
        self._pool.poll(self._chains.num_unfinished)
        for answer in answers:
            if (end := self._pool.take(answer)) is not None:
                self._handle(end)

    def _handle(self, end: CycleEnd) -> None:
        """Records a finished cycle, or prepares the retry of a lost one.

        Raises:
            RuntimeError: If the cycle has failed, or was lost too often.
        """
        key, what = (end.chain, end.cycle), f"cycle {end.cycle} of chain {end.chain}"
        match end:
            case CycleFinished(table=table, state=state, measured=measured):
                if len(self._tickets) < _TICKETS_IN_FLIGHT * self._pool.peak_size:
                    self._tickets[key] = FinishedTicket(table, measured)
                self._chains.finish(end.chain, end.cycle + 1, state)
            case CycleLost(error=error, was_preempted=was_preempted):
                losses = self._losses[key] = self._losses.get(key, 0) + (not was_preempted)
                if not should_retry(losses):
                    raise RuntimeError(
                        f"Cannot finish {what}: it lost {losses} explorers, the last one with: {root_cause(error)}. "
                        "The usual cause is too little memory. The same command continues from here."
                    ) from error
                self._chains.reload_after_loss(end.chain)
            case CycleFailed(error=error):
                raise RuntimeError(f"Cannot finish {what}: {root_cause(error)}") from error
