"""When to give up on what fails or waits: pure decisions, tested without a cluster."""

from __future__ import annotations

MAX_ATTEMPTS = 5
"""How often in a row a thing is tried before its failure counts as the recipe's, not a machine's."""
MIN_STALL_SECONDS = 600.0
"""How long a run that has begun waits for machines at the least: those that were taken away may come back."""


def should_retry(attempts: int) -> bool:
    """Returns whether a cycle whose explorer died is tried again after `attempts` tries."""
    return attempts < MAX_ATTEMPTS


class RetryBudget:
    """Deaths in a row. Only getting further than ever before ends the row: what always dies at one point does not."""

    def __init__(self, most: int = MAX_ATTEMPTS) -> None:
        """Starts with none.

        Args:
            most: So many without progress between them are too many.
        """
        self._most, self.count = most, 0
        self.furthest = 0.0
        """How far it ever came."""

    def reached(self, progress: float) -> None:
        """Takes note of how far it came, in any unit that only grows."""
        if progress > self.furthest:
            self.furthest, self.count = progress, 0

    def died(self) -> bool:
        """Counts a death, and returns whether it is worth another try."""
        self.count += 1
        return self.count < self._most


def stall_limit_seconds(resource_timeout_minutes: float) -> float:
    """Returns how long a run that has begun waits while no machine is there that it could run on."""
    return max(60 * resource_timeout_minutes, MIN_STALL_SECONDS)


class StallTimer:
    """How long nothing could run for want of machines. No clock of its own: the time is an argument, in seconds."""

    def __init__(self, limit_seconds: float) -> None:
        """Starts without one; `limit_seconds` are too long."""
        self.limit_seconds = limit_seconds
        self._since: float | None = None

    def begins(self, is_dry: bool, now: float) -> bool:
        """Takes note of whether there are no machines now; returns whether that has just begun."""
        began = is_dry and self._since is None
        self._since = (self._since if self._since is not None else now) if is_dry else None
        return began

    def is_over_limit(self, now: float) -> bool:
        """Returns whether it has lasted too long."""
        return self._since is not None and now - self._since >= self.limit_seconds
