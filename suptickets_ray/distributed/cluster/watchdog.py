"""Waits for machines: before a run starts, and while it runs and its machines may join and leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.capacity import (
    ResourceShortfall,
    cancel_machine_request,
    explorer_bundle,
    explorer_shortfall,
    request_machines,
    resource_shortfall,
    superposer_bundle,
    worker_bundle,
)
from suptickets_ray.distributed.cluster.polling import CLUSTER_POLL_SECONDS, ClusterPollTimer
from suptickets_ray.distributed.cluster.retry import StallTimer, stall_limit_seconds
from suptickets_ray.progress.events import Waiting

_SLOW_START_SECONDS = 60.0
"""Longer than an actor takes to start; a slower start is reported to the user."""
OnWait = Callable[[str], None]
"""Called with the reason for waiting, once per wait."""


class ShortfallWatchdog:
    """Reports a shortfall of machines once, and raises an error once it has lasted too long."""

    def __init__(self, limit_seconds: float, on_wait: OnWait, to_error: Callable[[str], Exception]) -> None:
        """Starts without a shortfall.

        Args:
            limit_seconds: How long a shortfall may last. With 0 the first one is an error.
            on_wait: Called with the reason for waiting.
            to_error: Returns the error of a text.
        """
        self._timer, self._on_wait, self._to_error = StallTimer(limit_seconds), on_wait, to_error

    def poll(self, shortfall: ResourceShortfall | None) -> None:
        """Records the current shortfall, or that there is none. Raises `to_error` if it has lasted too long."""
        now, minutes = time.monotonic(), self._timer.limit_seconds / 60
        has_begun = self._timer.update(shortfall is not None, now)
        if shortfall is None:
            return
        if self._timer.is_over_limit(now):
            raise self._to_error(shortfall.error_text(minutes))
        if has_begun:
            self._on_wait(shortfall.waiting_text(minutes))


def wait_for_capacity(config: ClusterConfig, on_wait: OnWait) -> None:
    """Waits until pretraining fits, and after it an explorer beside the superposer.

    A killed start of the run may have left a request to the autoscaler, which would keep billed machines running. It is
    cancelled first.

    Args:
        config: The resource requests.
        on_wait: Called with the reason for waiting.

    Raises:
        ValueError: If the cluster lacks capacity, also after `resource_timeout_minutes`. The text holds the numbers.
    """
    needed = [worker_bundle(config)] * config.min_workers
    if explorer_bundle(config) != worker_bundle(config):  # otherwise explorers reuse pretraining's machines
        needed.append(explorer_bundle(config))
    if superposer := superposer_bundle(config):
        needed.append(superposer)
    if config.resource_timeout_minutes:
        request_machines([])
    wait_for_machines(config, needed, lambda: resource_shortfall(config), on_wait)


def wait_for_machines(
    config: ClusterConfig,
    needed: Sequence[Mapping[str, float]],
    find_shortfall: Callable[[], ResourceShortfall | None],
    on_wait: OnWait,
) -> None:
    """Waits until there is no shortfall. The request to the autoscaler is cancelled on every exit.

    Args:
        config: Sets how long to wait.
        needed: Bundles to request from the autoscaler.
        find_shortfall: Returns the current shortfall.
        on_wait: Called with the reason for waiting.

    Raises:
        ValueError: If the shortfall lasts for `resource_timeout_minutes`.
    """
    has_requested = False

    def request(text: str) -> None:
        nonlocal has_requested
        has_requested = True
        request_machines(needed)
        on_wait(text)

    watchdog = ShortfallWatchdog(60 * config.resource_timeout_minutes, request, ValueError)
    try:
        while (shortfall := find_shortfall()) is not None:
            watchdog.poll(shortfall)
            time.sleep(CLUSTER_POLL_SECONDS)
    finally:
        if has_requested:
            cancel_machine_request()


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
        limit_seconds = stall_limit_seconds(config.resource_timeout_minutes)
        self._shortage = ShortfallWatchdog(limit_seconds, self._report, _as_run_failure)
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
        now = time.monotonic()
        self._shortage.poll(shortfall if is_stalled else None)
        if self._slow_start.update(is_stalled and shortfall is None, now):
            self._is_slow_start_reported = False
        if self._slow_start.is_over_limit(now) and not self._is_slow_start_reported:
            self._is_slow_start_reported = True
            self._report(
                f"waiting for {self._what} to start: suitable machines may be in use, or it may still be loading data"
            )

    def _report(self, text: str) -> None:
        self._monitor.report.remote(Waiting(text))


def _as_run_failure(text: str) -> RuntimeError:
    return RuntimeError(f"{text} The same command continues from here.")


def capacity_watch(config: ClusterConfig, monitor: Any, what: str) -> Callable[[], None]:
    """Returns a callback to call repeatedly while Ray Tune runs, because Tune itself waits for machines without limit.

    The callback raises RuntimeError once an explorer has fitted no machine for too long; see `StallWatchdog`.
    """
    watchdog, timer = StallWatchdog(config, monitor, what), ClusterPollTimer()

    def poll() -> None:
        if timer.is_due():
            shortfall = explorer_shortfall(config)
            watchdog.poll(shortfall is not None, shortfall)

    return poll
