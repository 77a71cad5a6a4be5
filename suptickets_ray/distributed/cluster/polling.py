"""How often the driver and the workers poll."""

from __future__ import annotations

import time

POLL_SECONDS = 0.2
"""Time between two polls of running work, for its results and events."""
CLUSTER_POLL_SECONDS = 3.0
"""Time between two polls of the cluster, for new, missing and draining machines."""


class ClusterPollTimer:
    """Limits polls of the cluster to one per `CLUSTER_POLL_SECONDS`."""

    def __init__(self) -> None:
        """Starts the first interval."""
        self._last_poll = time.monotonic()

    def is_due(self) -> bool:
        """Returns whether the interval has passed. If so, the next one starts."""
        now = time.monotonic()
        if now - self._last_poll < CLUSTER_POLL_SECONDS:
            return False
        self._last_poll = now
        return True
