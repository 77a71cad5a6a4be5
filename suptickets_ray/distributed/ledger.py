"""Who explores what: trials that need the same tickets must not train them twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

LEASE_SECONDS = 20.0
"""A holder that has not been heard of for so long has died or was stopped."""
_WAIT_SECONDS = 0.3


class Leases:
    """Keys and their holders. No clock of its own: the time is an argument."""

    def __init__(self, lease_seconds: float = LEASE_SECONDS) -> None:
        self._lease_seconds = lease_seconds
        self._holders: dict[str, tuple[str, float]] = {}

    def acquire(self, key: str, holder: str, now: float) -> bool:
        """Takes or renews a lease; returns whether `holder` has it now."""
        current, heard = self._holders.get(key, (holder, now))
        if current != holder and now - heard < self._lease_seconds:
            return False
        self._holders[key] = (holder, now)
        return True

    def release(self, key: str, holder: str) -> None:
        """Gives a lease back; one that another holds stays."""
        if self._holders.get(key, ("", 0.0))[0] == holder:
            del self._holders[key]


@ray.remote(num_cpus=0)
class Ledger:
    """The leases of one search. Losing it costs work done twice, never a result: tickets have the same bits."""

    def __init__(self) -> None:
        self._leases = Leases()

    def acquire(self, key: str, holder: str) -> bool:
        """Takes or renews a lease."""
        return self._leases.acquire(key, holder, time.monotonic())

    def release(self, key: str, holder: str) -> None:
        """Gives a lease back."""
        self._leases.release(key, holder)


@contextmanager
def leased(ledger: Any, key: str, holder: str) -> Iterator[Callable[[], None]]:
    """Waits until nobody else holds the key; yields what renews the lease, to be called every few seconds."""
    while not ray.get(ledger.acquire.remote(key, holder)):
        time.sleep(_WAIT_SECONDS)
    try:
        yield lambda: ledger.acquire.remote(key, holder)
    finally:
        ray.get(ledger.release.remote(key, holder))
