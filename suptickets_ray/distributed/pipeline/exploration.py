"""Distributes chains of cycles over explorers. Tickets are returned through the object store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from suptickets_ray.distributed.cluster.capacity import (
    actor_options,
    cancel_machine_request,
    draining_nodes,
    explorer_bundle,
    explorer_shortfall,
    num_explorers_that_fit,
    request_machines,
    worker_labels,
)
from suptickets_ray.distributed.cluster.errors import DEATHS, root_cause
from suptickets_ray.distributed.cluster.retry import RetryBudget, should_retry
from suptickets_ray.distributed.cluster.shared_storage import StorageProbe
from suptickets_ray.distributed.cluster.watchdog import StallWatchdog
from suptickets_ray.distributed.pipeline.chains import Chains
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.distributed.pipeline.cycle_order import next_cycle
from suptickets_ray.distributed.pipeline.explorer import Explorer
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.tickets.store import Origin, RunStore, TicketStore

_POLL_SECONDS = 0.2
_CLUSTER_POLL_SECONDS = 3.0
"""Time between two polls of the cluster for new and draining machines."""
_TICKETS_IN_FLIGHT = 2
"""Finished tickets per explorer that wait in the object store for the superposer. Others wait in the storage."""


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
        config = context.config
        self._config, self._context, self._cycles, self._on_poll = config, context, cycles, on_poll
        self._store = RunStore(context.run_path)
        self._tickets: dict[tuple[int, int], Any] = {}
        self._tried: set[tuple[int, int]] = set()
        self._losses: dict[tuple[int, int], int] = {}
        """Number of losses by (chain, cycle). Losses after a preemption notice do not count."""
        self._starting: dict[Any, Any] = {}
        self._pinged: dict[Any, Any] = {}
        self._num_explorers = self._num_started = 0
        self._failed_starts = RetryBudget()
        self._watchdog = StallWatchdog(config.cluster, context.monitor, "an explorer")
        self._storage_probe = StorageProbe(context.run_path)
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Any, Any, int, int]] = {}
        self._nodes: dict[Any, str] = {}
        self._draining: frozenset[str] = frozenset()
        self._last_poll = time.monotonic()
        self._origin = Origin(exploration_key(config), pretrained_digest)
        self._chains = Chains(self._store, config.tickets.num_chains, cycles, pretrained, self._origin)
        self.num_stored = sum(self._chains.done.values())
        """Number of tickets that earlier starts have finished."""
        self.restarted = self._chains.restarted
        """Chains that start again because their files are damaged or belong to another run."""
        self._first_cycles = dict(self._chains.done)
        # An earlier start may have written points to the TensorBoard folders.
        self._has_earlier_scalars = any(path.startswith("chain-") for path in RunStore(context.tensorboard).list(""))

    def __enter__(self) -> Exploration:
        """Starts as many explorers as there is work for."""
        cluster, chains = self._config.cluster, self._config.tickets.num_chains
        try:
            if self._requests_machines and not self.is_done:
                request_machines([explorer_bundle(cluster)] * min(cluster.num_explorers or chains, chains))
            self._start_missing_explorers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kills the explorers, which frees their CPUs at once."""
        self._storage_probe.close()
        for explorer in self._explorers():
            with contextlib.suppress(*DEATHS):
                ray.kill(explorer)
        if self._requests_machines:
            cancel_machine_request()

    @property
    def _requests_machines(self) -> bool:
        """Whether to request machines from the autoscaler. False in a Tune trial, whose placement group requests them.

        A cluster keeps one request: the end of one trial would cancel the requests of all.
        """
        return bool(self._config.cluster.resource_timeout_minutes) and ray.util.get_current_placement_group() is None

    def ticket(self, chain: int, cycle: int) -> Any:
        """Returns the object reference of a ticket's Arrow table. Waits until its cycle is finished.

        The reference is not kept, so that memory does not grow with the number of tickets.

        Raises:
            RuntimeError: If a cycle fails permanently.
        """
        while self._chains.done[chain] <= cycle:
            self._dispatch()
            self._collect(_POLL_SECONDS)
        if (chain, cycle) in self._tickets:
            return self._tickets.pop((chain, cycle))
        return ray.put(TicketStore(self._store).get(chain, cycle).to_arrow())

    @property
    def is_done(self) -> bool:
        """Whether every cycle of every chain is finished."""
        return not self._chains.num_unfinished

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

    def _start_explorer(self) -> None:
        """Requests an explorer. It becomes idle once it runs; on a cluster that has shrunk, it may never start."""
        cluster = self._config.cluster
        options = actor_options(explorer_bundle(cluster))
        if ray.util.get_current_placement_group() is None:  # a Tune trial places explorers in its own bundles
            options["scheduling_strategy"] = "SPREAD"
        sized = Explorer.options(**options, label_selector=worker_labels(cluster) or None)  # type: ignore[attr-defined]
        explorer = sized.remote(self._context)
        self._starting[explorer.node.remote()] = explorer

    def _explorers(self) -> list[Any]:
        running = (job[0] for job in self._running.values())
        return [*self._starting.values(), *self._pinged.values(), *self._idle, *running]

    def _start_missing_explorers(self) -> None:
        """Requests explorers up to the cluster's capacity and the unfinished chains, as machines may have joined."""
        capacity = num_explorers_that_fit(self._config.cluster, self._config.tickets.num_chains)
        num_wanted = min(capacity, self._chains.num_unfinished)
        self._num_explorers = max(self._num_explorers, num_wanted)
        for _ in range(num_wanted - len(self._explorers())):
            self._start_explorer()

    def _poll_cluster(self) -> None:
        """Detects new and draining machines, at most once per `_CLUSTER_POLL_SECONDS`."""
        if time.monotonic() - self._last_poll < _CLUSTER_POLL_SECONDS:
            return
        self._last_poll = time.monotonic()
        self._draining = draining_nodes()
        self._storage_probe.poll()
        for explorer in [idle for idle in self._idle if self._nodes.get(idle) in self._draining]:
            self._idle.remove(explorer)
            self._set_idle_or_retire(explorer)
        self._start_missing_explorers()
        is_stalled = not (self._running or self._idle or self._pinged or self.is_done)
        shortfall = explorer_shortfall(self._config.cluster, draining=self._draining) if is_stalled else None
        self._watchdog.poll(is_stalled, shortfall)

    def _set_idle_or_retire(self, explorer: Any) -> None:
        """Marks an explorer as idle, or kills it if its machine is draining.

        Its finished cycles are stored. A cycle that starts on a draining machine would be lost.
        """
        if self._nodes.get(explorer) in self._draining:
            with contextlib.suppress(*DEATHS):
                ray.kill(explorer)
            return
        self._idle.append(explorer)

    def _dispatch(self) -> None:
        while self._idle:
            job = next_cycle(self._chains.done, (chain for _, _, _, chain, _ in self._running.values()), self._cycles)
            if job is None:
                return
            chain, cycle = job
            explorer = self._idle.pop()
            again = job in self._tried or (self._has_earlier_scalars and cycle == self._first_cycles[chain])
            self._tried.add(job)
            run_cycle = explorer.run_cycle.options(num_returns=3)
            table, state, done = run_cycle.remote(self._chains.state_of(chain), chain, cycle, again)
            self._running[done] = (explorer, table, state, chain, cycle)

    def _collect(self, seconds: float) -> None:
        """Waits up to `seconds` until an explorer has finished or started, and handles its result."""
        waiting = [*self._running, *self._starting, *self._pinged]
        if not waiting:
            time.sleep(seconds)
        finished, _ = ray.wait(waiting, num_returns=1, timeout=seconds, fetch_local=False) if waiting else ([], [])
        self._on_poll()
        self._poll_cluster()
        for done in finished:
            if done in self._starting:
                self._handle_started(done)
                continue
            if done in self._pinged:
                self._handle_answer(done)
                continue
            explorer, table, state, chain, cycle = self._running.pop(done)
            try:
                # Ticket and state are not fetched, so that the driver's memory does not depend on the network's size.
                ray.get(done)
            except DEATHS as error:
                losses = self._losses.get((chain, cycle), 0) + (not self._was_preempted(explorer, error))
                self._losses[chain, cycle] = losses
                if not should_retry(losses):
                    raise RuntimeError(
                        f"Cannot finish cycle {cycle} of chain {chain}: it lost {losses} explorers, the last one "
                        f"with: {root_cause(error)}. The usual cause is too little memory. The same command continues "
                        "from here."
                    ) from error
                if isinstance(error, ObjectLostError):
                    self._idle.append(explorer)  # the explorer lives; only its input state was lost
                else:
                    self._start_explorer()
                self._recover_after_loss(chain)
                continue
            except RayTaskError as error:
                raise RuntimeError(f"Cannot finish cycle {cycle} of chain {chain}: {root_cause(error)}") from error
            self._set_idle_or_retire(explorer)
            if len(self._tickets) < _TICKETS_IN_FLIGHT * self._num_explorers:
                self._tickets[chain, cycle] = table
            self._chains.finish(chain, cycle + 1, state)

    def _was_preempted(self, explorer: Any, error: Exception) -> bool:
        """Whether the machine was preempted with notice, in which case the cycle is not the cause."""
        return bool(getattr(error, "preempted", False)) or self._nodes.get(explorer) in self._draining

    def _recover_after_loss(self, chain: int) -> None:
        """Reads a chain's state from the storage after a loss, and checks that idle explorers still answer."""
        self._chains.reload_after_loss(chain)
        for explorer in self._idle:
            self._pinged[explorer.node.remote()] = explorer
        self._idle = []

    def forget_tickets(self) -> None:
        """Drops all tickets in memory, because some were lost. They are read from the storage when requested."""
        self._tickets.clear()

    def _handle_answer(self, answer: Any) -> None:
        explorer = self._pinged.pop(answer)
        try:
            ray.get(answer)
        except DEATHS:
            self._start_explorer()
            return
        self._idle.append(explorer)

    def _handle_started(self, ready: Any) -> None:
        explorer = self._starting.pop(ready)
        try:
            self._nodes[explorer] = ray.get(ready)
        except DEATHS as error:
            if not self._failed_starts.record_failure():
                raise RuntimeError(
                    f"Cannot start explorers: {self._failed_starts.count} died during their start, the last one with: "
                    f"{root_cause(error)}. The usual cause is too little memory. The same command continues from here."
                ) from error
            self._start_explorer()
            return
        self._num_started += 1
        self._failed_starts.record_progress(self._num_started)
        self._set_idle_or_retire(explorer)
