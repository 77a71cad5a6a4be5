"""Who explores what: trials that need the same tickets must not train them twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

LEASE_SECONDS = 20.0
"""A holder that has not been heard of for so long has died or was stopped."""
_WAIT_SECONDS = 0.3
_RENEWALS = 5
"""How often a holder is heard of in the time after which it would count as dead."""


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
class LeaseServer:
    """The leases of one search. Losing it costs work done twice, never a result: tickets have the same bits."""

    def __init__(self, lease_seconds: float = LEASE_SECONDS) -> None:
        self._leases = Leases(lease_seconds)

    def acquire(self, key: str, holder: str) -> bool:
        """Takes or renews a lease."""
        return self._leases.acquire(key, holder, time.monotonic())

    def release(self, key: str, holder: str) -> None:
        """Gives a lease back."""
        self._leases.release(key, holder)


class Lease:
    """A key that this process holds. A thread says so all the time, whatever else the process is busy with."""

    def __init__(self, lease_server: Any, key: str, holder: str, lease_seconds: float) -> None:
        self._lease_server, self._key, self._holder = lease_server, key, holder
        self._pause = lease_seconds / _RENEWALS
        self._ended = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """Raises RuntimeError if another has taken the key over: this process was silent for too long."""
        if self._is_lost:
            raise RuntimeError(
                f"the exploration {self._key} was taken over by another trial, since this one was not heard of for "
                f"{self._pause * _RENEWALS:g} s. It is tried again, and goes on from the tickets that are there."
            )

    def _renew(self) -> None:
        while not self._ended.wait(self._pause):
            try:
                self._is_lost = not ray.get(self._lease_server.acquire.remote(self._key, self._holder))
            except RayError:
                return  # nobody keeps leases any more
            if self._is_lost:
                return

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def leased(lease_server: Any, key: str, holder: str, lease_seconds: float = LEASE_SECONDS) -> Iterator[Lease]:
    """Waits until nobody else holds the key, and holds it until the end.

    Args:
        lease_server: Handle of a `LeaseServer`.
        key: What is held.
        holder: Who holds it.
        lease_seconds: As the lease_server has it.
    """
    while not ray.get(lease_server.acquire.remote(key, holder)):
        time.sleep(_WAIT_SECONDS)
    try:
        with Lease(lease_server, key, holder, lease_seconds) as lease:
            yield lease
    finally:
        ray.get(lease_server.release.remote(key, holder))
