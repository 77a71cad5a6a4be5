"""Leases on explorations, so that trials that need the same tickets do not train them twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from suptickets_ray.distributed.cluster.polling import POLL_SECONDS

LEASE_SECONDS = 20.0
"""Time without a renewal after which a holder counts as dead or stopped."""
_RENEWALS_PER_LEASE = 5
"""Renewals within the time after which a holder would count as dead."""


class Leases:
    """Keys and their holders. The current time is an argument, in seconds."""

    def __init__(self, lease_seconds: float = LEASE_SECONDS) -> None:
        self._lease_seconds = lease_seconds
        self._holders: dict[str, tuple[str, float]] = {}

    def acquire(self, key: str, holder: str, now: float) -> bool:
        """Takes or renews a lease. Returns whether `holder` now holds it."""
        current, renewed = self._holders.get(key, (holder, now))
        if current != holder and now - renewed < self._lease_seconds:
            return False
        self._holders[key] = (holder, now)
        return True

    def release(self, key: str, holder: str) -> None:
        """Releases a lease if `holder` holds it."""
        if self._holders.get(key, ("", 0.0))[0] == holder:
            del self._holders[key]


@ray.remote(num_cpus=0)
class LeaseServer:
    """The leases of one search. Its loss may repeat work, but changes no result: tickets are deterministic."""

    def __init__(self, lease_seconds: float = LEASE_SECONDS) -> None:
        self._leases = Leases(lease_seconds)

    def acquire(self, key: str, holder: str) -> bool:
        """Takes or renews a lease. Returns whether `holder` now holds it."""
        return self._leases.acquire(key, holder, time.monotonic())

    def release(self, key: str, holder: str) -> None:
        """Releases a lease if `holder` holds it."""
        self._leases.release(key, holder)


class Lease:
    """A key that this process holds. A thread renews the lease, also while the process is busy."""

    def __init__(self, lease_server: Any, key: str, holder: str, lease_seconds: float) -> None:
        self._lease_server, self._key, self._holder = lease_server, key, holder
        self._renewal_seconds = lease_seconds / _RENEWALS_PER_LEASE
        self._ended = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """Raises RuntimeError if another holder has taken the key over, because this process renewed too late."""
        if self._is_lost:
            raise RuntimeError(
                f"Cannot continue exploration {self._key}: another trial has taken it over, because this one did not "
                f"renew its lease for {self._renewal_seconds * _RENEWALS_PER_LEASE:g} s. Ray Tune retries this trial, "
                "which continues from the stored tickets."
            )

    def _renew(self) -> None:
        while not self._ended.wait(self._renewal_seconds):
            try:
                self._is_lost = not ray.get(self._lease_server.acquire.remote(self._key, self._holder))
            except RayError:
                return  # the server is gone, and all leases with it
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
    """Waits until no other holder has the key, and holds it within the context.

    Args:
        lease_server: Handle of a `LeaseServer`.
        key: The key to hold.
        holder: Id of the holder.
        lease_seconds: The `lease_seconds` of the server.
    """
    while not ray.get(lease_server.acquire.remote(key, holder)):
        time.sleep(POLL_SECONDS)
    try:
        with Lease(lease_server, key, holder, lease_seconds) as lease:
            yield lease
    finally:
        ray.get(lease_server.release.remote(key, holder))
