"""Chains of cycles spread over explorers; tickets come back through the object store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from suptickets_ray.config import Config
from suptickets_ray.distributed.cluster.capacity import (
    actor_options,
    draining_nodes,
    explorer_bundle,
    explorer_shortfall,
    num_explorers_that_fit,
    request_machines,
    withdraw_request,
    worker_labels,
)
from suptickets_ray.distributed.cluster.errors import DEATHS, root_cause
from suptickets_ray.distributed.cluster.retry import RetryBudget, should_retry
from suptickets_ray.distributed.cluster.shared_storage import JoiningMachines
from suptickets_ray.distributed.cluster.watchdog import StallWatchdog
from suptickets_ray.distributed.pipeline.chains import Chains
from suptickets_ray.distributed.pipeline.cycle_order import next_cycle
from suptickets_ray.distributed.pipeline.explorer import Explorer
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.tickets.store import Origin, RunStore, TicketStore

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 3.0
"""How often the cluster is looked at: machines may come, or be about to go."""
_TICKETS_IN_FLIGHT = 2
"""Finished tickets that wait in the object store for the superposer, per explorer; later ones wait in the storage."""


class Exploration:
    """Hands cycles to explorers and tickets to whoever asks, in any order.

    Explorers return their tickets: the driver owns them, so they outlive the process that made them. What a lost
    machine held is in the storage, too.
    """

    def __init__(
        self,
        config: Config,
        settings: dict[str, Any],
        pretrained: Any,
        cycles: int,
        on_poll: Callable[[], None],
        *,
        pretrained_digest: str,
    ) -> None:
        """Finds out what an earlier start of the run has finished. No explorer is started yet.

        Args:
            config: The recipe.
            settings: What `worker_settings` gave.
            pretrained: Object reference of the state that pretraining ended in.
            cycles: Cycles of every chain.
            on_poll: Called a few times a second while waiting.
            pretrained_digest: The `state_digest` of that state.
        """
        self._config, self._settings, self._cycles, self._on_poll = config, settings, cycles, on_poll
        self._store = RunStore(settings["run_path"])
        self._tickets: dict[tuple[int, int], Any] = {}
        self._tried: set[tuple[int, int]] = set()
        self._losses: dict[tuple[int, int], int] = {}
        """How often a cycle was lost, not counting machines that were taken away with notice."""
        self._starting: dict[Any, Any] = {}
        self._asked: dict[Any, Any] = {}
        self._num_explorers = self._num_started = 0
        self._failed_starts = RetryBudget()
        self._watchdog = StallWatchdog(config.cluster, settings["monitor"], "an explorer")
        self._joining = JoiningMachines(settings["run_path"])
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Any, Any, int, int]] = {}
        self._nodes: dict[Any, str] = {}
        self._draining: frozenset[str] = frozenset()
        self._looked = time.monotonic()
        self._origin = Origin(exploration_key(config), pretrained_digest)
        self._chains = Chains(self._store, config.tickets.num_chains, cycles, pretrained, self._origin)
        self.num_stored = sum(self._chains.done.values())
        """Tickets that an earlier start has finished."""
        self.remade = self._chains.remade
        """Chains that are run anew because what is stored of them is damaged."""
        self._first_cycles = dict(self._chains.done)
        # Points of an earlier start may lie in the TensorBoard folders.
        self._continues = any(path.startswith("chain-") for path in RunStore(settings["tensorboard"]).list(""))

    def __enter__(self) -> Exploration:
        """Starts the explorers that have something to do."""
        cluster, chains = self._config.cluster, self._config.tickets.num_chains
        try:
            if self._asks_for_machines and not self.is_done:
                request_machines([explorer_bundle(cluster)] * min(cluster.num_explorers or chains, chains))
            self._grow()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the explorers; their CPUs are free for others at once."""
        self._joining.close()
        for explorer in self._explorers():
            with contextlib.suppress(*DEATHS):
                ray.kill(explorer)
        if self._asks_for_machines:
            withdraw_request()

    @property
    def _asks_for_machines(self) -> bool:
        """Not in a trial of Tune, whose bundles ask: a cluster keeps one request, and its end would take all back."""
        return bool(self._config.cluster.resource_timeout_minutes) and ray.util.get_current_placement_group() is None

    def ticket(self, chain: int, cycle: int) -> Any:
        """Returns the object reference of a ticket's Arrow table, waiting until its cycle is done.

        The reference is handed over, not kept, so that memory does not grow with the number of tickets.

        Raises:
            RuntimeError: If a cycle fails for good.
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
        """Cycles that were run to their end by this start."""
        return self._chains.num_trained

    @property
    def num_states(self) -> int:
        """States of chains in memory; those that have ended need none."""
        return self._chains.num_states

    @property
    def num_in_memory(self) -> int:
        """Finished tickets that wait in the object store until somebody asks for them."""
        return len(self._tickets)

    def advance(self) -> None:
        """Collects what is finished and hands out what is next, without waiting: call it while waiting for others.

        Raises:
            RuntimeError: If a cycle fails for good.
        """
        if self.is_done:
            self._on_poll()
            return
        self._collect(0)
        self._dispatch()

    def _start_explorer(self) -> None:
        """Asks for an explorer. It is idle once it runs: on a cluster that shrank it may wait for room for ever."""
        cluster = self._config.cluster
        options = actor_options(explorer_bundle(cluster))
        if ray.util.get_current_placement_group() is None:  # in a trial of Tune they go into its bundles
            options["scheduling_strategy"] = "SPREAD"
        sized = Explorer.options(**options, label_selector=worker_labels(cluster) or None)  # type: ignore[attr-defined]
        explorer = sized.remote(self._settings)
        self._starting[explorer.node.remote()] = explorer

    def _explorers(self) -> list[Any]:
        running = (job[0] for job in self._running.values())
        return [*self._starting.values(), *self._asked.values(), *self._idle, *running]

    def _grow(self) -> None:
        """Asks for as many explorers as there is room and work for: machines may have come since the last look."""
        slots = num_explorers_that_fit(self._config.cluster, self._config.tickets.num_chains)
        slots = min(slots, self._chains.num_unfinished)
        self._num_explorers = max(self._num_explorers, slots)
        for _ in range(slots - len(self._explorers())):
            self._start_explorer()

    def _look(self) -> None:
        """From time to time: which machines have come, and which are about to be taken away."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self._draining = draining_nodes()
        self._joining.look()
        for explorer in [idle for idle in self._idle if self._nodes.get(idle) in self._draining]:
            self._idle.remove(explorer)
            self._rest(explorer)
        self._grow()
        stands_still = not (self._running or self._idle or self._asked or self.is_done)
        lack = explorer_shortfall(self._config.cluster, draining=self._draining) if stands_still else None
        self._watchdog.look(stands_still, lack)

    def _rest(self, explorer: Any) -> None:
        """An explorer that has nothing to do is idle, or leaves a machine that is about to be taken away.

        What it did is stored; a cycle that it would start there would be lost with the machine.
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
            again = job in self._tried or (self._continues and cycle == self._first_cycles[chain])
            self._tried.add(job)
            run_cycle = explorer.run_cycle.options(num_returns=3)
            table, state, done = run_cycle.remote(self._chains.state_of(chain), chain, cycle, again)
            self._running[done] = (explorer, table, state, chain, cycle)

    def _collect(self, seconds: float) -> None:
        """Waits up to so long for anything to finish."""
        waiting = [*self._running, *self._starting, *self._asked]
        if not waiting:
            time.sleep(seconds)
        finished, _ = ray.wait(waiting, num_returns=1, timeout=seconds, fetch_local=False) if waiting else ([], [])
        self._on_poll()
        self._look()
        for done in finished:
            if done in self._starting:
                self._welcome(done)
                continue
            if done in self._asked:
                self._welcome_back(done)
                continue
            explorer, table, state, chain, cycle = self._running.pop(done)
            try:
                # Ticket and state stay where they are: the driver's memory does not depend on the network's size.
                ray.get(done)
            except DEATHS as error:
                losses = self._losses.get((chain, cycle), 0) + (not self._was_taken_away(explorer, error))
                self._losses[chain, cycle] = losses
                if not should_retry(losses):
                    raise RuntimeError(
                        f"cycle {cycle} of chain {chain} lost {losses} explorers, the last one "
                        f"to: {root_cause(error)}. Memory is the usual want; the same command goes on from here."
                    ) from error
                if isinstance(error, ObjectLostError):
                    self._idle.append(explorer)  # it lives; the state that it was given does not
                else:
                    self._start_explorer()
                self._doubt(chain)
                continue
            except RayTaskError as error:
                raise RuntimeError(f"cycle {cycle} of chain {chain} failed: {root_cause(error)}") from error
            self._rest(explorer)
            if len(self._tickets) < _TICKETS_IN_FLIGHT * self._num_explorers:
                self._tickets[chain, cycle] = table
            self._chains.finish(chain, cycle + 1, state)

    def _was_taken_away(self, explorer: Any, error: Exception) -> bool:
        """Whether its machine went with notice: that says nothing about the cycle."""
        return bool(getattr(error, "preempted", False)) or self._nodes.get(explorer) in self._draining

    def _doubt(self, chain: int) -> None:
        """After a death: what a lost machine held is read from the storage, and idle explorers are asked to answer."""
        self._chains.doubt(chain)
        for explorer in self._idle:
            self._asked[explorer.node.remote()] = explorer
        self._idle = []

    def forget_tickets(self) -> None:
        """Lets go of all tickets in memory, because some were lost; they are read from the storage when asked for."""
        self._tickets.clear()

    def _welcome_back(self, answer: Any) -> None:
        explorer = self._asked.pop(answer)
        try:
            ray.get(answer)
        except DEATHS:
            self._start_explorer()
            return
        self._idle.append(explorer)

    def _welcome(self, ready: Any) -> None:
        explorer = self._starting.pop(ready)
        try:
            self._nodes[explorer] = ray.get(ready)
        except DEATHS as error:
            if not self._failed_starts.died():
                raise RuntimeError(
                    f"{self._failed_starts.count} explorers died while they started, the last one of: "
                    f"{root_cause(error)}. Memory is the usual want; the same command goes on from here."
                ) from error
            self._start_explorer()
            return
        self._num_started += 1
        self._failed_starts.reached(self._num_started)
        self._rest(explorer)
