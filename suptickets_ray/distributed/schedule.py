"""Which cycle runs next, and when to give up: pure decisions, tested without a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_ATTEMPTS = 5
"""How often in a row a thing is tried before its failure counts as the recipe's, not a machine's."""
LEAST_DROUGHT_SECONDS = 600.0
"""How long a run that has begun waits for machines at the least: those that were taken away may come back."""


def next_cycle(done: Mapping[int, int], running: Iterable[int], cycles: int) -> tuple[int, int] | None:
    """Returns the (chain, cycle) that an idle explorer should run, or None when there is nothing to start now.

    The chain that is furthest behind comes first, lower chains before higher ones: the tickets then arrive roughly
    in the order in which they are folded, and few have to wait.

    Args:
        done: Chain to its number of finished cycles.
        running: Chains with a cycle under way; a chain's cycles run one after another.
        cycles: Cycles of every chain.
    """
    busy = set(running)
    ready = [(cycle, chain) for chain, cycle in done.items() if cycle < cycles and chain not in busy]
    if not ready:
        return None
    cycle, chain = min(ready)
    return chain, cycle


def should_retry(attempts: int) -> bool:
    """Returns whether a cycle whose explorer died is tried again after `attempts` tries."""
    return attempts < MAX_ATTEMPTS


class Setbacks:
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


def drought_seconds(wait_minutes: float) -> float:
    """Returns how long a run that has begun waits while no machine is there that it could run on."""
    return max(60 * wait_minutes, LEAST_DROUGHT_SECONDS)


class Drought:
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


def cycles_behind_state(done: int, state_cycle: int | None) -> int | None:
    """Returns how many cycles of a chain its stored state says are finished, None where the state is of no use.

    A machine may go after a cycle was stored and before the driver heard of it: then it is more than the driver counts.

    Args:
        done: Cycles of the chain that the driver knows to be finished.
        state_cycle: The cycle that the stored state was taken after, None without one.
    """
    return None if state_cycle is None or state_cycle + 1 < done else state_cycle + 1


def finished_cycles(stored: Iterable[tuple[int, int]], chain: int, state_cycle: int | None) -> int:
    """Returns how many cycles of a chain need not be run again.

    Args:
        stored: (chain, cycle) of every whole ticket.
        chain: The chain.
        state_cycle: The cycle that its stored state was taken after, None without one.
    """
    if state_cycle is None:
        return 0
    kept = {cycle for other, cycle in stored if other == chain}
    return state_cycle + 1 if kept.issuperset(range(state_cycle + 1)) else 0
