"""Locks of folders that this process holds for user-defined Tuners, whose end is not known here."""

from __future__ import annotations

import atexit
from contextlib import ExitStack

from suptickets_ray.distributed.cluster.run_lock import only_process

_held: dict[str, ExitStack] = {}
"""The locks, by the folder."""


def hold_lock(path: str) -> None:
    """Locks a folder until this process ends, or until `release_lock`."""
    if path not in _held:
        stack = ExitStack()
        stack.enter_context(only_process(path))
        _held[path] = stack
        atexit.register(release_lock, path)


def holds_lock(path: str) -> bool:
    """Returns whether `hold_lock` holds a folder's lock."""
    return path in _held


def release_lock(path: str) -> None:
    """Releases a folder's lock, if `hold_lock` holds it."""
    if path in _held:
        _held.pop(path).close()
