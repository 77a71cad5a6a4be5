"""When nothing can run for want of machines: a person is told, and after a while the run gives up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.capacity import ResourceShortfall, explorer_shortfall
from suptickets_ray.distributed.cluster.retry import StallTimer, stall_limit_seconds

_LOOK_SECONDS = 3.0
_SLOW_SECONDS = 60.0
"""Longer than an actor takes to start: then a person is told that none does."""


class StallWatchdog:
    """Watches a part of a run that can only work on machines that may come and go."""

    def __init__(self, config: ClusterConfig, monitor: Any, who: str) -> None:
        """Starts with all well.

        Args:
            config: Says how long to wait.
            monitor: Handle of the `Monitor`, which is told.
            who: What cannot start, e.g. "an explorer".
        """
        self._monitor, self._who = monitor, who
        self._shortage = StallTimer(stall_limit_seconds(config.resource_timeout_minutes))
        self._slowness = StallTimer(_SLOW_SECONDS)
        self._is_said = False

    def look(self, stands_still: bool, lack: ResourceShortfall | None) -> None:
        """Takes note of how it stands now.

        Args:
            stands_still: Whether nothing works that should.
            lack: What there is no room for on the machines that are there; None if only others hold them.

        Raises:
            RuntimeError: If there has been no room for longer than the recipe says, or than machines take to come back.
        """
        now, minutes = time.monotonic(), self._shortage.limit_seconds / 60
        waited = f" after {minutes:g} minutes"
        lack = lack if stands_still else None
        if self._shortage.begins(lack is not None, now) and lack:
            self._say(f"waiting up to {minutes:g} minutes for machines: there is room for {lack.short}")
        if lack and self._shortage.is_over_limit(now):
            raise RuntimeError(
                f"{lack.refusal.format(waited=waited)} {lack.remedy}, or give an autoscaler more time with "
                "cluster.resource_timeout_minutes. The same command goes on from here."
            )
        if self._slowness.begins(stands_still and lack is None, now):
            self._is_said = False
        if self._slowness.is_over_limit(now) and not self._is_said:
            self._is_said = True
            self._say(f"waiting for {self._who} to start: others may hold the machines for it, or it still loads data")

    def _say(self, text: str) -> None:
        self._monitor.report.remote({"kind": "waiting", "text": text})


def capacity_watch(config: ClusterConfig, monitor: Any, who: str) -> Callable[[], None]:
    """Returns what to call again and again while somebody else waits for machines: Ray Tune would do so for ever.

    It raises RuntimeError once nothing has fitted any machine for too long; see `StallWatchdog`.
    """
    watchdog, looked = StallWatchdog(config, monitor, who), time.monotonic()

    def look() -> None:
        nonlocal looked
        if time.monotonic() - looked >= _LOOK_SECONDS:
            looked, lack = time.monotonic(), explorer_shortfall(config)
            watchdog.look(lack is not None, lack)

    return look
