"""Handing tickets to the superposer, and starting it anew when it dies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.capacity import superposer_labels, superposer_shortfall
from suptickets_ray.distributed.cluster.errors import DEATHS, root_cause
from suptickets_ray.distributed.cluster.retry import RetryBudget
from suptickets_ray.distributed.cluster.watchdog import StallWatchdog
from suptickets_ray.distributed.pipeline.exploration import Exploration
from suptickets_ray.distributed.pipeline.merge_shard import MergeShard
from suptickets_ray.distributed.pipeline.superposer import Superposer
from suptickets_ray.tickets.accumulator import shares

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 3.0
"""How often it is looked whether there is a machine for the superposer."""
_MAX_PENDING = 8
"""Tickets handed over and not yet merged; each is held in the object store until it is."""
_MAX_UNLOOKED = 4
"""With so many waiting, merged networks on which nothing depends are not evaluated."""


class SuperposerClient:
    """The superposer, and what is needed to start it anew when it dies: the order of the tickets so far."""

    def __init__(self, settings: dict[str, Any], pretrained: Any, exploration: Exploration) -> None:
        """Starts the superposer.

        Args:
            settings: What `worker_settings` gave.
            pretrained: Object reference of the state that pretraining ended in.
            exploration: Gives the tickets.
        """
        self._settings, self._pretrained, self._exploration = settings, pretrained, exploration
        self._order: list[tuple[int, int]] = []
        self._num_submitted = 0
        self._pending: list[Any] = []
        self._num_merged = self._num_validated = 0
        self._deaths = RetryBudget()
        self._cluster = ClusterConfig(**settings["config"]["cluster"])
        self._watchdog = StallWatchdog(self._cluster, settings["monitor"], "the superposer")
        self._looked = time.monotonic()
        self._has_answered = False
        self._start()

    def merge(self, chain: int, cycle: int) -> None:
        """Hands one ticket over, to be merged after those before it; waits only while many are pending.

        Raises:
            RuntimeError: If an earlier ticket could not be merged.
        """
        self._order.append((chain, cycle))
        self._catch_up(_MAX_PENDING)

    def best_first(self, keys: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Returns the keys of all tickets in the order of their validation accuracy; of equals the earlier comes first.

        Raises:
            RuntimeError: If one of them cannot be made or judged.
        """
        accuracies: dict[tuple[int, int], float] = {}
        while len(accuracies) < len(keys):
            with self._deaths_survived():
                for key in keys:
                    if key not in accuracies:
                        accuracies[key] = self._wait_for(self._actor.validate.remote(self._exploration.ticket(*key)))
                        self._num_validated += 1
                        self._deaths.reached(self._num_validated)
        return sorted(keys, key=lambda key: -accuracies[key])

    def judge(self) -> Any:
        """Returns what the superposer judged once every ticket is merged.

        Raises:
            RuntimeError: If superposing fails for good.
        """
        while True:
            self._catch_up(0)
            with self._deaths_survived():
                if self._shares and self._order:
                    ray.get(self._actor.adopt.remote(*[share.accumulator.remote() for share in self._shares]))
                return ray.get(self._actor.judge.remote())

    def close(self) -> None:
        """Ends the actors."""
        for actor in (self._actor, *self._shares):
            with suppress(*DEATHS):
                ray.kill(actor)

    def _catch_up(self, most_pending: int) -> None:
        """Hands over what the present superposer has not been given; after a death that is everything, bit by bit."""
        while True:
            with self._deaths_survived():
                self._start_shares()
                while self._num_submitted < len(self._order):
                    key = self._order[self._num_submitted]
                    self._hand_over(self._exploration.ticket(*key), *key)
                    self._num_submitted += 1
                    self._settle(_MAX_PENDING)
                self._settle(most_pending)
                return

    def _hand_over(self, ticket: Any, chain: int, cycle: int) -> None:
        if self._shares:
            self._pending += [share.merge.remote(ticket, chain, cycle) for share in self._shares]
            self._pending.append(self._actor.note.remote(ticket, chain, cycle))
        else:
            look = len(self._pending) < _MAX_UNLOOKED
            self._pending.append(self._actor.merge.remote(ticket, chain, cycle, look))

    def _settle(self, most_pending: int) -> None:
        """Waits until no more than so many are pending; a failure of any that is done is raised."""
        if not self._pending:
            return
        finished, self._pending = ray.wait(self._pending, num_returns=len(self._pending), timeout=0)
        ray.get(finished)
        self._count(len(finished))
        while len(self._pending) > most_pending * (len(self._shares) + 1):
            self._wait_for(self._pending.pop(0))
            self._count(1)

    def _count(self, num_answers: int) -> None:
        """Takes note of what the present superposer has merged: one that comes further than all before it is well."""
        self._has_answered = self._has_answered or num_answers > 0
        self._num_merged += num_answers
        self._deaths.reached(self._num_validated + self._num_merged)

    def _wait_for(self, answer: Any) -> Any:
        """The superposer's answer; explorers are kept at work until it comes."""
        while not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
            self._exploration.advance()
            self._look()
        self._has_answered = True
        return ray.get(answer)

    def _look(self) -> None:
        """From time to time: whether a superposer that has not answered yet can start at all.

        Raises:
            RuntimeError: If there has been no machine for it for too long.
        """
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            stands_still = not self._has_answered
            self._watchdog.look(stands_still, superposer_shortfall(self._cluster) if stands_still else None)

    @contextmanager
    def _deaths_survived(self) -> Iterator[None]:
        """After a death, or when a ticket was lost with a machine, a new superposer is given all tickets anew."""
        try:
            yield
        except DEATHS as error:
            if isinstance(error, ObjectLostError):
                self._exploration.forget_tickets()
            elif not self._deaths.died():
                raise RuntimeError(
                    f"the superposer died {self._deaths.count} times, the last time: {root_cause(error)}"
                ) from error
            self.close()
            self._start()
        except RayTaskError as error:
            raise RuntimeError(f"superposing failed: {root_cause(error)}") from error

    def _start(self) -> None:
        options = {
            "num_gpus": self._cluster.superposer_gpus,
            "label_selector": superposer_labels(self._cluster) or None,
        }
        sized = Superposer.options(**options)  # type: ignore[attr-defined]
        self._actor = sized.remote(self._settings, self._pretrained)
        self._pending, self._num_submitted, self._num_merged, self._has_answered = [], 0, 0, False
        self._shares: list[Any] = []

    def _start_shares(self) -> None:
        """Starts those who merge some layers each, if there are to be any."""
        count = self._settings["config"]["cluster"]["num_merge_shards"]
        if count > 1 and not self._shares:
            first, rule, sizes = self._wait_for(self._actor.first.remote())
            spread = MergeShard.options(scheduling_strategy="SPREAD")  # type: ignore[attr-defined]
            self._shares = [spread.remote(self._settings, names, rule, first) for names in shares(sizes, count)]
