"""The explorer actors of a run: starts, replaces, retires and kills them."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any, TypeAlias

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
from suptickets_ray.distributed.cluster.errors import DEATHS, is_device_fault, root_cause
from suptickets_ray.distributed.cluster.polling import ClusterPollTimer
from suptickets_ray.distributed.cluster.retry import RetryBudget
from suptickets_ray.distributed.cluster.shared_storage import StorageProbe
from suptickets_ray.distributed.cluster.watchdog import StallWatchdog
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.distributed.pipeline.explorer import Explorer


@dataclass(frozen=True)
class CycleFinished:
    """A cycle has ended. Ticket and state are not fetched, so that the driver's memory does not grow with them."""

    chain: int
    cycle: int
    table: Any
    """Object reference of the ticket's Arrow table."""
    state: Any
    """Object reference of the state that the chain's next cycle starts from."""
    measured: Any
    """Object reference of what the explorer has measured of the ticket on both splits."""


@dataclass(frozen=True)
class CycleLost:
    """A cycle was lost with its explorer or its input."""

    chain: int
    cycle: int
    error: Exception
    """What Ray raised."""
    was_preempted: bool
    """Whether the machine had a preemption notice, in which case the cycle is not the cause."""


@dataclass(frozen=True)
class CycleFailed:
    """A cycle has raised an error, which it would raise again."""

    chain: int
    cycle: int
    error: Exception
    """What the explorer raised."""


CycleEnd: TypeAlias = CycleFinished | CycleLost | CycleFailed


@dataclass(frozen=True)
class _Job:
    """A running cycle, with the explorer that runs it and the references of its results."""

    explorer: Any
    chain: int
    cycle: int
    table: Any
    state: Any
    measured: Any


class ExplorerPool:
    """The explorers of a run. Each is starting, idle, busy, or pinged to learn whether it is alive."""

    def __init__(self, context: WorkerContext, num_chains: int) -> None:
        """Starts no explorer.

        Args:
            context: What is sent to the explorers. Its recipe sets their number.
            num_chains: Number of chains. More explorers are never needed.
        """
        self._context, self._cluster, self._num_chains = context, context.config.cluster, num_chains
        self._starting: dict[Any, Any] = {}
        self._pinged: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, _Job] = {}
        self._nodes: dict[Any, str] = {}
        self._draining: frozenset[str] = frozenset()
        self._num_started, self._failed_starts = 0, RetryBudget()
        self._poll_timer = ClusterPollTimer()
        self._watchdog = StallWatchdog(self._cluster, context.monitor, "an explorer")
        self._storage_probe = StorageProbe(context.run_path)
        self.peak_size = 0
        """The largest number of explorers that were needed and fitted the cluster so far."""

    def open(self, num_unfinished: int) -> None:
        """Starts as many explorers as there is work for.

        Args:
            num_unfinished: Number of chains with unfinished cycles.
        """
        if self._requests_machines and num_unfinished:
            number = min(self._cluster.num_explorers or self._num_chains, self._num_chains)
            request_machines([explorer_bundle(self._cluster)] * number)
        self._start_missing(num_unfinished)

    def close(self) -> None:
        """Kills the explorers, which frees their CPUs at once."""
        self._storage_probe.close()
        for explorer in self._all():
            self._kill(explorer)
        if self._requests_machines:
            cancel_machine_request()

    @property
    def has_idle(self) -> bool:
        """Whether an explorer can take a cycle."""
        return bool(self._idle)

    @property
    def busy_chains(self) -> list[int]:
        """The chains with a running cycle."""
        return [job.chain for job in self._busy.values()]

    def run_cycle(self, state: Any, chain: int, cycle: int, again: bool) -> None:
        """Starts a cycle on an idle explorer; see `Explorer.run_cycle`. There must be one."""
        explorer = self._idle.pop()
        results = explorer.run_cycle.options(num_returns=4).remote(state, chain, cycle, again)
        table, next_state, measured, done = results
        self._busy[done] = _Job(explorer, chain, cycle, table, next_state, measured)

    def wait(self, seconds: float) -> list[Any]:
        """Waits up to `seconds` for an answer of any explorer. Returns the answers, each for one call of `take`."""
        expected = [*self._busy, *self._starting, *self._pinged]
        if not expected:
            time.sleep(seconds)
            return []
        answers: list[Any] = ray.wait(expected, num_returns=1, timeout=seconds, fetch_local=False)[0]
        return answers

    def take(self, answer: Any) -> CycleEnd | None:
        """Handles an answer. A lost explorer is replaced.

        Returns:
            How a cycle has ended, or None if the answer is not that of a cycle.

        Raises:
            RuntimeError: If explorers die repeatedly during their start.
        """
        if answer in self._starting:
            self._handle_start(answer)
            return None
        if answer in self._pinged:
            self._handle_ping(answer)
            return None
        job = self._busy.pop(answer)
        try:
            ray.get(answer)
        except DEATHS as error:
            was_preempted = bool(getattr(error, "preempted", False)) or self._is_draining(job.explorer)
            if isinstance(error, ObjectLostError):
                self._idle.append(job.explorer)  # the explorer lives; only its input state was lost
            else:
                self._start()
            self._ping_idle()
            return CycleLost(job.chain, job.cycle, error, was_preempted)
        except RayTaskError as error:
            if is_device_fault(error):
                self._kill(job.explorer)
                self._start()
                return CycleLost(job.chain, job.cycle, error, False)
            self._idle.append(job.explorer)
            return CycleFailed(job.chain, job.cycle, error)
        self._set_idle_or_retire(job.explorer)
        return CycleFinished(job.chain, job.cycle, job.table, job.state, job.measured)

    def poll(self, num_unfinished: int) -> None:
        """Detects new and draining machines, and a stall. Polls the cluster at most once per interval.

        Args:
            num_unfinished: Number of chains with unfinished cycles.

        Raises:
            RuntimeError: If no machine has fitted an explorer for too long, or a machine does not see the storage.
        """
        if not self._poll_timer.is_due():
            return
        self._draining = draining_nodes()
        self._storage_probe.poll()
        for explorer in [idle for idle in self._idle if self._is_draining(idle)]:
            self._idle.remove(explorer)
            self._kill(explorer)
        self._start_missing(num_unfinished)
        is_stalled = bool(num_unfinished) and not (self._busy or self._idle or self._pinged)
        shortfall = explorer_shortfall(self._cluster, draining=self._draining) if is_stalled else None
        self._watchdog.poll(is_stalled, shortfall)

    @property
    def _requests_machines(self) -> bool:
        """Whether to request machines from the autoscaler. False in a Tune trial, whose placement group requests them.

        A cluster keeps one request: the end of one trial would cancel the requests of all.
        """
        return bool(self._cluster.resource_timeout_minutes) and ray.util.get_current_placement_group() is None

    def _all(self) -> list[Any]:
        busy = (job.explorer for job in self._busy.values())
        return [*self._starting.values(), *self._pinged.values(), *self._idle, *busy]

    def _start(self) -> None:
        """Requests an explorer. It becomes idle once it runs; on a cluster that has shrunk, it may never start."""
        options = actor_options(explorer_bundle(self._cluster))
        if ray.util.get_current_placement_group() is None:  # a Tune trial places explorers in its own bundles
            options["scheduling_strategy"] = "SPREAD"
        labels = worker_labels(self._cluster) or None
        sized = Explorer.options(**options, label_selector=labels)  # type: ignore[attr-defined]
        explorer = sized.remote(self._context)
        self._starting[explorer.node.remote()] = explorer

    def _start_missing(self, num_unfinished: int) -> None:
        """Requests explorers up to the cluster's capacity and the unfinished chains, as machines may have joined."""
        num_wanted = min(num_explorers_that_fit(self._cluster, self._num_chains), num_unfinished)
        self.peak_size = max(self.peak_size, num_wanted)
        for _ in range(num_wanted - len(self._all())):
            self._start()

    def _is_draining(self, explorer: Any) -> bool:
        return self._nodes.get(explorer) in self._draining

    def _set_idle_or_retire(self, explorer: Any) -> None:
        """Marks an explorer as idle, or kills it if its machine is draining.

        Its finished cycles are stored. A cycle that starts on a draining machine would be lost.
        """
        if self._is_draining(explorer):
            self._kill(explorer)
        else:
            self._idle.append(explorer)

    def _kill(self, explorer: Any) -> None:
        with contextlib.suppress(*DEATHS):
            ray.kill(explorer)

    def _ping_idle(self) -> None:
        """Asks idle explorers for an answer after a loss, which may have taken them, too."""
        self._pinged |= {explorer.node.remote(): explorer for explorer in self._idle}
        self._idle = []

    def _handle_ping(self, answer: Any) -> None:
        explorer = self._pinged.pop(answer)
        try:
            ray.get(answer)
        except DEATHS:
            self._start()
            return
        self._idle.append(explorer)

    def _handle_start(self, answer: Any) -> None:
        explorer = self._starting.pop(answer)
        try:
            self._nodes[explorer] = ray.get(answer)
        except DEATHS as error:
            if not self._failed_starts.record_failure():
                raise RuntimeError(
                    f"Cannot start explorers: {self._failed_starts.count} died during their start, the last one with: "
                    f"{root_cause(error)}. The usual cause is too little memory. The same command continues from here."
                ) from error
            self._start()
            return
        self._num_started += 1
        self._failed_starts.record_progress(self._num_started)
        self._set_idle_or_retire(explorer)
