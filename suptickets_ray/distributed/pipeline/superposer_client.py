"""Submits tickets to the superposer, and restarts it if it dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from suptickets_ray.distributed.cluster.capacity import superposer_labels, superposer_shortfall
from suptickets_ray.distributed.cluster.errors import DEATHS, is_device_fault, root_cause
from suptickets_ray.distributed.cluster.polling import POLL_SECONDS, ClusterPollTimer
from suptickets_ray.distributed.cluster.retry import RetryBudget
from suptickets_ray.distributed.cluster.watchdog import StallWatchdog
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.distributed.pipeline.exploration import Exploration, FinishedTicket
from suptickets_ray.distributed.pipeline.merge_shard import MergeShard
from suptickets_ray.distributed.pipeline.superposer import Superposer
from suptickets_ray.tickets.accumulator import split_into_shards
from suptickets_ray.training.tasks import make_task

_MAX_PENDING = 8
"""Tickets that are submitted but not merged yet. The object store holds each of them until it is merged."""
_MAX_PENDING_FOR_VALIDATION = 4
"""With this many pending tickets, a merged network is validated only if a decision depends on it."""


class SuperposerClient:
    """Controls the superposer. Keeps the order of the tickets so far, so that it can restart a dead superposer."""

    def __init__(self, context: WorkerContext, pretrained: Any, exploration: Exploration) -> None:
        """Starts the superposer.

        Args:
            context: What is sent to the superposer.
            pretrained: Object reference of the final state of pretraining.
            exploration: Source of the tickets.
        """
        self._context, self._pretrained, self._exploration = context, pretrained, exploration
        self._order: list[tuple[int, int]] = []
        self._num_submitted = 0
        self._pending: list[Any] = []
        self._num_merged = self._num_validated = 0
        self._deaths = RetryBudget()
        self._cluster = context.config.cluster
        self._watchdog = StallWatchdog(self._cluster, context.monitor, "the superposer")
        self._poll_timer = ClusterPollTimer()
        self._has_answered = False
        self._start()

    def merge(self, chain: int, cycle: int) -> None:
        """Submits one ticket, which is merged after the previous ones. Waits only while too many are pending.

        Raises:
            RuntimeError: If an earlier ticket could not be merged.
        """
        self._order.append((chain, cycle))
        self._catch_up(_MAX_PENDING)

    def best_first(self, keys: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Returns the keys of all tickets, those with the best validation score first. Equal ones keep their order.

        Raises:
            RuntimeError: If a ticket cannot be trained or validated.
        """
        scores: dict[tuple[int, int], float] = {}
        while len(scores) < len(keys):
            with self._restart_on_death():
                for key in keys:
                    if key not in scores:
                        scores[key] = self._wait_for(self._actor.validate.remote(*self._exploration.ticket(*key), *key))
                        self._num_validated += 1
                        self._deaths.record_progress(self._num_validated)
        sign = -1 if make_task(self._context.config).metric.mode == "max" else 1
        return sorted(keys, key=lambda key: sign * scores[key])

    def evaluate(self) -> Any:
        """Returns the result of `Superposer.evaluate`, after every ticket is merged.

        Raises:
            RuntimeError: If superposing fails permanently.
        """
        while True:
            self._catch_up(0)
            with self._restart_on_death():
                if self._shards and self._order:
                    ray.get(self._actor.set_merged.remote(*[shard.accumulator.remote() for shard in self._shards]))
                return ray.get(self._actor.evaluate.remote())

    def close(self) -> None:
        """Kills the actors."""
        for actor in (self._actor, *self._shards):
            with suppress(*DEATHS):
                ray.kill(actor)

    def _catch_up(self, max_pending: int) -> None:
        """Submits all tickets that the current superposer has not received. After a restart these are all tickets."""
        while True:
            with self._restart_on_death():
                self._start_shards()
                while self._num_submitted < len(self._order):
                    key = self._order[self._num_submitted]
                    self._submit(self._exploration.ticket(*key), *key)
                    self._num_submitted += 1
                    self._limit_pending(_MAX_PENDING)
                self._limit_pending(max_pending)
                return

    def _submit(self, ticket: FinishedTicket, chain: int, cycle: int) -> None:
        if self._shards:
            self._pending += [shard.merge.remote(ticket.table, chain, cycle) for shard in self._shards]
            self._pending.append(self._actor.record_ticket.remote(*ticket, chain, cycle))
        else:
            validate = len(self._pending) < _MAX_PENDING_FOR_VALIDATION
            self._pending.append(self._actor.merge.remote(*ticket, chain, cycle, validate))

    def _limit_pending(self, max_pending: int) -> None:
        """Waits until at most `max_pending` tickets are pending. Raises the errors of finished calls."""
        if not self._pending:
            return
        finished, self._pending = ray.wait(self._pending, num_returns=len(self._pending), timeout=0)
        ray.get(finished)
        self._count_answers(len(finished))
        while len(self._pending) > max_pending * (len(self._shards) + 1):
            self._wait_for(self._pending.pop(0))
            self._count_answers(1)

    def _count_answers(self, num_answers: int) -> None:
        """Counts answers of the current superposer. Only more progress than any earlier one resets the retry budget."""
        self._has_answered = self._has_answered or num_answers > 0
        self._num_merged += num_answers
        self._deaths.record_progress(self._num_validated + self._num_merged)

    def _wait_for(self, answer: Any) -> Any:
        """Returns the superposer's answer. Explorers receive new cycles while it waits."""
        while not ray.wait([answer], timeout=POLL_SECONDS)[0]:
            self._exploration.advance()
            self._poll_cluster()
        self._has_answered = True
        return ray.get(answer)

    def _poll_cluster(self) -> None:
        """Checks whether a superposer that has not answered yet can start. Polls at most once per interval.

        Raises:
            RuntimeError: If no machine has fit the superposer for too long.
        """
        if self._poll_timer.is_due():
            is_stalled = not self._has_answered
            self._watchdog.poll(is_stalled, superposer_shortfall(self._cluster) if is_stalled else None)

    @contextmanager
    def _restart_on_death(self) -> Iterator[None]:
        """Restarts the superposer after its death, or after a loss of tickets. All tickets are then submitted again."""
        try:
            yield
        except DEATHS as error:
            if isinstance(error, ObjectLostError):
                self._exploration.forget_tickets()
            elif not self._deaths.record_failure():
                raise RuntimeError(
                    f"Cannot superpose: the superposer died {self._deaths.count} times, the last time with: "
                    f"{root_cause(error)}"
                ) from error
            self.close()
            self._start()
        except RayTaskError as error:
            if not is_device_fault(error) or not self._deaths.record_failure():
                raise RuntimeError(f"Cannot superpose: {root_cause(error)}") from error
            self.close()
            self._start()

    def _start(self) -> None:
        options = {
            "num_gpus": self._cluster.superposer_gpus,
            "label_selector": superposer_labels(self._cluster) or None,
        }
        sized = Superposer.options(**options)  # type: ignore[attr-defined]
        self._actor = sized.remote(self._context, self._pretrained)
        self._pending, self._num_submitted, self._num_merged, self._has_answered = [], 0, 0, False
        self._shards: list[Any] = []

    def _start_shards(self) -> None:
        """Starts the merge shards, if the recipe requests more than one."""
        count = self._cluster.num_merge_shards
        if count > 1 and not self._shards:
            initial, rule, sizes = self._wait_for(self._actor.initial_merge.remote())
            spread = MergeShard.options(scheduling_strategy="SPREAD")  # type: ignore[attr-defined]
            self._shards = [
                spread.remote(self._context, names, rule, initial) for names in split_into_shards(sizes, count)
            ]
