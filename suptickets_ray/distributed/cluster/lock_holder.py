"""Who holds a run: what its lock file says, and whether that process still works on it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from suptickets_ray.tickets.run_folder import LOCK_FILE
from suptickets_ray.tickets.store import RunStore

Heartbeat = dict[str, Any]
"""The content of a run's lock file: who holds the run, and in an object store a counter."""
_SILENT_SECONDS = 60.0
"""Age of a heartbeat in an object store from which its holder is shown as lost."""


def new_heartbeat() -> Heartbeat:
    """Returns a unique identity for this holder, with its process id, host name, boot and pid namespace."""
    return {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}


def _machine() -> str:
    """Returns the machine's boot id and this process's pid namespace; empty if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def running_holder(path: str, *, heartbeat_age: float = 0.0) -> Heartbeat | None:
    """Returns the holder of a run that is running, for display. It takes no lock and does not wait.

    Args:
        path: The run's folder, or a URI.
        heartbeat_age: Seconds since the lock file was written. It counts only for a URI.
    """
    found = read_holder(RunStore(path))
    if found is None or found.get("unreadable") == "" or is_dead_here(found):
        return None
    if "://" in path:
        return found if heartbeat_age <= _SILENT_SECONDS else None
    if found.get("machine") == _machine() and _machine():
        return found
    return found if _is_locked(Path(path) / LOCK_FILE) else None


def _is_locked(file: Path) -> bool:
    """Whether a process of another machine holds the file. Asked only if one has, since asking locks it briefly."""
    with suppress(OSError), file.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_holder(store: RunStore) -> Heartbeat | None:
    """Returns the stored heartbeat, or None without one. Unreadable content counts as another holder's heartbeat."""
    if not store.exists(LOCK_FILE):
        return None
    try:
        content = store.read(LOCK_FILE)
    except FileNotFoundError:
        return None
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"unreadable": content.hex()}


def is_dead_here(holder: Heartbeat) -> bool:
    """Whether the holder ran on this machine and has ended, so that there is no need to wait for it."""
    if holder.get("host") != socket.gethostname() or not _machine() or holder.get("machine") != _machine():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        return False
    return False


def describe_holder(holder: Heartbeat) -> str:
    """Returns the process and the host of a holder in words."""
    known = {"pid", "host"} <= set(holder)
    return f"process {holder['pid']} on {holder['host']}" if known else "another process"


def busy_error(path: str, holder: Heartbeat) -> ValueError:
    """Returns the refusal to work on a run that another process holds."""
    return ValueError(
        f"Cannot lock the run in {path}: {describe_holder(holder)} works on it. Wait for it, or choose another name=."
    )
