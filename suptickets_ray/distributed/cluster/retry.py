"""Retry and stall policies: pure decisions, tested without a cluster."""

from __future__ import annotations

MAX_ATTEMPTS = 5
"""Consecutive attempts after which a failure is attributed to the recipe, not to a machine."""
MIN_STALL_SECONDS = 600.0
"""Shortest time that a started run waits for machines, because preempted machines may be replaced."""


def should_retry(attempts: int) -> bool:
    """Returns whether a cycle whose explorer died is retried after `attempts` attempts."""
    return attempts < MAX_ATTEMPTS


class RetryBudget:
    """Counts consecutive failures.

    The counter resets only on new progress. A failure that repeats at the same point therefore exhausts the budget.
    """

    def __init__(self, max_failures: int = MAX_ATTEMPTS) -> None:
        """Starts without failures.

        Args:
            max_failures: Consecutive failures without progress that exhaust the budget.
        """
        self._max_failures, self.count = max_failures, 0
        self.max_progress = 0.0
        """The highest progress reported so far."""

    def record_progress(self, progress: float) -> None:
        """Resets the counter if `progress`, in any increasing unit, is a new maximum."""
        if progress > self.max_progress:
            self.max_progress, self.count = progress, 0

    def record_failure(self) -> bool:
        """Counts a failure. Returns whether a retry is allowed."""
        self.count += 1
        return self.count < self._max_failures


def stall_limit_seconds(resource_timeout_minutes: float) -> float:
    """Returns how many seconds a started run may wait without a machine that fits it."""
    return max(60 * resource_timeout_minutes, MIN_STALL_SECONDS)


class StallTimer:
    """Measures how long a stall lasts. The current time is an argument, in seconds."""

    def __init__(self, limit_seconds: float) -> None:
        """Starts without a stall; a stall of `limit_seconds` or more is over the limit."""
        self.limit_seconds = limit_seconds
        self._since: float | None = None

    def update(self, is_stalled: bool, now: float) -> bool:
        """Records whether the run is stalled at `now`. Returns whether a stall has just begun."""
        has_begun = is_stalled and self._since is None
        self._since = (self._since if self._since is not None else now) if is_stalled else None
        return has_begun

    def is_over_limit(self, now: float) -> bool:
        """Returns whether the current stall has reached the limit."""
        return self._since is not None and now - self._since >= self.limit_seconds
