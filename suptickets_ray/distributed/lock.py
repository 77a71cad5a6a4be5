"""One process at a time works on a run: by the system's lock in a folder, by a sign of life in an object store."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from suptickets_ray.tickets.store import RunStore

LOCK_FILE = ".lock"
BEAT_SECONDS = 10.0
"""How often a holder gives a sign of life."""
SILENCE_SECONDS = 45.0
"""A holder that gave none for so long is dead."""
_LOOK_SECONDS = 1.0


@contextmanager
def only_process(path: str) -> Iterator[None]:
    """Keeps a second process out of a run's folder; the lock goes with its holder, however that ends.

    Raises:
        ValueError: If another process works there, or the folder cannot be written.
    """
    with _in_object_store(path) if "://" in path else _in_folder(path):
        yield


@contextmanager
def _in_folder(path: str) -> Iterator[None]:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        lock = (Path(path) / LOCK_FILE).open("w")
    except OSError as error:
        raise ValueError(f"storage must be a folder that can be written; got: {error}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _busy(path, "another process") from error
        yield


@contextmanager
def _in_object_store(path: str) -> Iterator[None]:
    """A file that its holder writes anew all the time. Two that start within the same second may both win."""
    store = RunStore(path)
    own = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    _wait_until_free(store, path)
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while True:
            with suppress(OSError):  # out of reach for a while; it is tried again
                store.write(LOCK_FILE, json.dumps({**own, "beat": count}).encode())
            count += 1
            if stop.wait(BEAT_SECONDS):
                return

    try:
        store.write(LOCK_FILE, json.dumps({**own, "beat": -1}).encode())
    except OSError as error:
        raise ValueError(f"storage must be an object store that can be written; got: {error}.") from error
    thread = threading.Thread(target=beat, name="sign-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(OSError):
            store.delete(LOCK_FILE)


def _wait_until_free(store: RunStore, path: str) -> None:
    """Waits while a holder may be dead; its own clock is not looked at, only whether it still writes."""
    first = _read(store)
    if first is None or _is_dead_here(first):
        return
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        now = _read(store)
        if now is None:
            return
        if now != first:
            raise _busy(path, f"process {now['pid']} on {now['host']}")


def _read(store: RunStore) -> dict[str, Any] | None:
    if not store.exists(LOCK_FILE):
        return None
    try:
        found: dict[str, Any] = json.loads(store.read(LOCK_FILE))
    except (FileNotFoundError, ValueError):
        return None
    return found


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine and has ended: then nobody needs to wait for it."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _busy(path: str, who: str) -> ValueError:
    return ValueError(f"the run in {path} must be free; {who} works on it. Wait for it, or choose another name=.")
