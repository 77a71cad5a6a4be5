"""Handing tickets to the superposer, and starting it anew when it dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from suptickets_ray.distributed.exploration import Exploration
from suptickets_ray.distributed.failures import DEATHS, root_cause
from suptickets_ray.distributed.superposer import Superposer

_MAX_DEATHS = 5
_POLL_SECONDS = 0.2
_MAX_PENDING = 8
"""Tickets handed over and not yet folded; each is held in the object store until it is."""


class Folding:
    """The superposer, and what is needed to start it anew when it dies: the order of the tickets so far."""

    def __init__(self, settings: dict[str, Any], pretrained: Any, exploration: Exploration) -> None:
        """Starts the superposer.

        Args:
            settings: What `worker_settings` gave.
            pretrained: Object reference of the state that phase one ended in.
            exploration: Gives the tickets.
        """
        self._settings, self._pretrained, self._exploration = settings, pretrained, exploration
        self._order: list[tuple[int, int]] = []
        self._num_submitted = 0
        self._pending: list[Any] = []
        self._num_deaths = 0
        self._start()

    def fold(self, chain: int, cycle: int) -> None:
        """Hands one ticket over, to be folded after those before it; waits only while many are pending.

        Raises:
            RuntimeError: If an earlier ticket could not be folded.
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
        return sorted(keys, key=lambda key: -accuracies[key])

    def judge(self) -> Any:
        """Returns the superposer's verdict once all is folded.

        Raises:
            RuntimeError: If superposing fails for good.
        """
        while True:
            self._catch_up(0)
            with self._deaths_survived():
                return ray.get(self._actor.judge.remote())

    def close(self) -> None:
        """Ends the actor."""
        ray.kill(self._actor)

    def _catch_up(self, most_pending: int) -> None:
        """Hands over what the present superposer has not been given; after a death that is everything, bit by bit."""
        while True:
            with self._deaths_survived():
                while self._num_submitted < len(self._order):
                    key = self._order[self._num_submitted]
                    self._pending.append(self._actor.fold.remote(self._exploration.ticket(*key), *key))
                    self._num_submitted += 1
                    self._settle(_MAX_PENDING)
                self._settle(most_pending)
                return

    def _settle(self, most_pending: int) -> None:
        """Waits until no more than so many are pending; a failure of any that is done is raised."""
        if not self._pending:
            return
        finished, self._pending = ray.wait(self._pending, num_returns=len(self._pending), timeout=0)
        ray.get(finished)
        while len(self._pending) > most_pending:
            self._wait_for(self._pending.pop(0))

    def _wait_for(self, answer: Any) -> Any:
        """The superposer's answer; explorers are kept at work until it comes."""
        while not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
            self._exploration.advance()
        return ray.get(answer)

    @contextmanager
    def _deaths_survived(self) -> Iterator[None]:
        """After a death, or when a ticket was lost with a machine, a new superposer is given all tickets anew."""
        try:
            yield
        except DEATHS as error:
            if isinstance(error, ObjectLostError):
                self._exploration.forget_tickets()
            else:
                self._num_deaths += 1
            if self._num_deaths >= _MAX_DEATHS:
                raise RuntimeError(
                    f"the superposer died {self._num_deaths} times, the last time: {root_cause(error)}"
                ) from error
            with suppress(*DEATHS):
                self.close()
            self._start()
        except RayTaskError as error:
            raise RuntimeError(f"superposing failed: {root_cause(error)}") from error

    def _start(self) -> None:
        options = {"num_gpus": self._settings["config"]["cluster"]["superposer_gpus"]}
        sized = Superposer.options(**options)  # type: ignore[attr-defined]
        self._actor = sized.remote(self._settings, self._pretrained)
        self._pending, self._num_submitted = [], 0
