"""Reports a stalled run, and ends it once it has had no suitable machine for too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.capacity import ResourceShortfall, explorer_shortfall
from suptickets_ray.distributed.cluster.retry import StallTimer, stall_limit_seconds
from suptickets_ray.progress.events import Waiting

_POLL_SECONDS = 3.0
_SLOW_START_SECONDS = 60.0
"""Longer than an actor takes to start; a slower start is reported to the user."""


class StallWatchdog:
    """Watches a stage of a run whose machines may join and leave."""

    def __init__(self, config: ClusterConfig, monitor: Any, what: str) -> None:
        """Starts without a stall.

        Args:
            config: Sets how long to wait for machines.
            monitor: Handle of the `Monitor` that receives the messages.
            what: What may be unable to start, e.g. "an explorer".
        """
        self._monitor, self._what = monitor, what
        self._shortage = StallTimer(stall_limit_seconds(config.resource_timeout_minutes))
        self._slow_start = StallTimer(_SLOW_START_SECONDS)
        self._is_slow_start_reported = False

    def poll(self, is_stalled: bool, shortfall: ResourceShortfall | None) -> None:
        """Records the current state, and reports a new stall.

        Args:
            is_stalled: Whether nothing runs although work is left.
            shortfall: The resources that the present machines cannot provide. None if they fit but may be in use.

        Raises:
            RuntimeError: If a shortfall has lasted for `resource_timeout_minutes`, or for ten minutes if that is less.
        """
        now, minutes = time.monotonic(), self._shortage.limit_seconds / 60
        waited = f" after {minutes:g} minutes"
        shortfall = shortfall if is_stalled else None
        if self._shortage.update(shortfall is not None, now) and shortfall:
            self._report(
                f"waiting up to {minutes:g} minutes for machines: the cluster has capacity for {shortfall.summary}"
            )
        if shortfall and self._shortage.is_over_limit(now):
            raise RuntimeError(
                f"{shortfall.error.format(waited=waited)} {shortfall.remedy}, or give an autoscaler more time with "
                "cluster.resource_timeout_minutes. The same command continues from here."
            )
        if self._slow_start.update(is_stalled and shortfall is None, now):
            self._is_slow_start_reported = False
        if self._slow_start.is_over_limit(now) and not self._is_slow_start_reported:
            self._is_slow_start_reported = True
            self._report(
                f"waiting for {self._what} to start: suitable machines may be in use, or it may still be loading data"
            )

    def _report(self, text: str) -> None:
        self._monitor.report.remote(Waiting(text))


def capacity_watch(config: ClusterConfig, monitor: Any, what: str) -> Callable[[], None]:
    """Returns a callback to call repeatedly while Ray Tune runs, because Tune itself waits for machines without limit.

    The callback raises RuntimeError once an explorer has fitted no machine for too long; see `StallWatchdog`.
    """
    watchdog, polled = StallWatchdog(config, monitor, what), time.monotonic()

    def poll() -> None:
        nonlocal polled
        if time.monotonic() - polled >= _POLL_SECONDS:
            polled, shortfall = time.monotonic(), explorer_shortfall(config)
            watchdog.poll(shortfall is not None, shortfall)

    return poll
