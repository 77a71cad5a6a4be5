"""Garbage collection at the start of a process: importing torch creates many objects and almost no garbage."""

from __future__ import annotations

import gc

_RARE, _NORMAL = (10_000, 10, 10), gc.get_threshold()


def collect_rarely() -> None:
    """Collects rarely, which makes imports faster. Call `collect_normally` before large tensors are created."""
    gc.set_threshold(*_RARE)


def collect_normally() -> None:
    """Restores the thresholds, and excludes all existing objects from later collections."""
    if gc.get_threshold() == _RARE:
        gc.set_threshold(*_NORMAL)
        gc.freeze()
