"""Handing tickets to the superposer, and starting it anew when it dies."""

from __future__ import annotations

from typing import Any

import ray

from suptickets_ray.distributed.exploration import Exploration
from suptickets_ray.distributed.superposer import Superposer

_MAX_SUPERPOSERS = 5


class Folding:
    """The superposer, and what is needed to start it anew when it dies: the order of the tickets so far."""

    def __init__(self, settings: dict[str, Any], pretrained: Any) -> None:
        self._settings, self._pretrained = settings, pretrained
        self._order: list[tuple[int, int]] = []
        self._starts = 0
        self._start()

    def fold(self, exploration: Exploration, chain: int, cycle: int) -> None:
        """Hands one ticket over, to be folded after those before it. Does not wait."""
        self._order.append((chain, cycle))
        self._pending.append(self._actor.fold.remote(exploration.ticket(chain, cycle), chain, cycle))

    def judge(self, exploration: Exploration) -> Any:
        """Returns the superposer's verdict once all is folded; a superposer that died is rebuilt from the store."""
        while True:
            try:
                ray.get(self._pending)
                return ray.get(self._actor.judge.remote())
            except ray.exceptions.RayActorError as error:
                if self._starts >= _MAX_SUPERPOSERS:
                    raise RuntimeError(f"the superposer died {self._starts} times, the last time: {error}") from error
                order, self._order = self._order, []
                self._start()
                for chain, cycle in order:
                    self.fold(exploration, chain, cycle)
            except ray.exceptions.RayTaskError as error:
                raise RuntimeError(f"superposing failed: {error.cause}") from error

    def close(self) -> None:
        """Ends the actor."""
        ray.kill(self._actor)

    def _start(self) -> None:
        self._starts += 1
        self._actor = Superposer.remote(self._settings, self._pretrained)  # type: ignore[attr-defined]
        self._pending: list[Any] = []
