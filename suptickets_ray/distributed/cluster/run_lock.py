"""Keeps a run to one process at a time: by a file lock in a folder, by heartbeats in an object store."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from suptickets_ray.distributed.cluster.lock_holder import (
    Heartbeat,
    busy_error,
    describe_holder,
    is_dead_here,
    new_heartbeat,
    read_holder,
)
from suptickets_ray.tickets.run_folder import LOCK_FILE
from suptickets_ray.tickets.store import RunStore

HEARTBEAT_SECONDS = 10.0
"""Time between two heartbeats of a holder."""
POLL_SECONDS = 1.0
"""Time between two polls of a process that waits for the run."""
MAX_SILENT_POLLS = 105
"""Polls without a heartbeat after which a holder counts as dead. Longer than a run waits for an unreachable storage."""

Sleep = Callable[[float], None]


@contextmanager
def only_process(path: str, on_wait: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Keeps other processes out of a run's folder. The lock is released when its holder ends, also when it is killed.

    Args:
        path: The run's folder, or a URI.
        on_wait: Called with a message if the previous holder must be waited for.

    Raises:
        ValueError: If another process works on the run, or the folder cannot be written.
        RuntimeError: In an object store, if another process has taken the run over in the meantime.
    """
    with _in_object_store(path, on_wait) if "://" in path else _in_folder(path):
        yield


def check_free(path: str) -> None:
    """Checks early, without keeping the lock, whether another process works on a run in a local folder.

    Raises:
        ValueError: If another process works on it, or the lock is not a regular file of this user. A run in an object
            store is checked later, by `only_process`, because it is only known to be free after some silence.
    """
    if "://" in path or not os.path.lexists(Path(path, LOCK_FILE)):
        return
    with _in_folder(path):
        pass


@contextmanager
def _in_folder(path: str) -> Iterator[None]:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        lock = _opened_lock(Path(path))
    except OSError as error:
        raise ValueError(f"storage must be a folder that can be written; got: {error}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy_error(path, read_holder(RunStore(path)) or {}) from error
        except OSError as error:
            raise ValueError(
                f"storage must be on a file system that supports file locks; got {path}: {error}. Mount it with locks "
                "(e.g. -o flock), or choose another storage=."
            ) from error
        if not _is_in(Path(path), lock):
            raise busy_error(path, {})
        _rewrite(lock, json.dumps(new_heartbeat()).encode())
        try:
            yield
        finally:
            _rewrite(lock, b"")


def _opened_lock(folder: Path) -> IO[bytes]:
    """Returns the open lock file. Follows no link, truncates nothing, and does not block on a pipe.

    Raises:
        OSError: If it cannot be written.
        ValueError: If it is not a regular file of this user, or of the folder's owner where the file system maps users.
    """
    file = folder / LOCK_FILE
    try:
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise ValueError(_foreign_lock(file)) from error
        raise
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), folder.stat().st_uid):
        os.close(opened)
        raise ValueError(_foreign_lock(file))
    return os.fdopen(opened, "r+b")


def _is_in(folder: Path, lock: IO[bytes]) -> bool:
    """Whether the open lock is still the folder's: `suptickets runs rm` may have removed the folder meanwhile."""
    with suppress(OSError):
        return (folder / LOCK_FILE).stat().st_ino == os.fstat(lock.fileno()).st_ino
    return False


def _rewrite(lock: IO[bytes], content: bytes) -> None:
    """Replaces what the lock file says about its holder. Only for display, so that a full disk is no error."""
    with suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        os.pwrite(lock.fileno(), content, 0)


def _foreign_lock(file: Path) -> str:
    return f"{file} must be a regular file of this user; got something else. Remove it, or choose another name=."


@contextmanager
def _in_object_store(path: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Holds the run by a lock file that a thread rewrites at every heartbeat."""
    store, own = RunStore(path), new_heartbeat()
    wait_until_free(store, path, on_wait=on_wait)
    try:
        claim(store, path, own)
    except OSError as error:
        raise ValueError(f"storage must be an object store that can be written; got: {error}.") from error
    holder, stop = threading.get_ident(), threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            if stop.wait(HEARTBEAT_SECONDS):
                return
            with suppress(OSError):  # unreachable for now; the next heartbeat retries
                if not renew(store, own, count):
                    _raise_in(holder, _TakenOverError)
                    return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(OSError):
                if _is_held(read_holder(store), own):
                    store.delete(LOCK_FILE)
    except _TakenOverError:
        raise RuntimeError(_taken_over(store, path)) from None


class _TakenOverError(BaseException):
    """Interrupts the former holder of a run. A BaseException, so that no handler for Exception catches it."""


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Raises an error in another thread, at its next Python instruction.

    A signal would not do: a process that was started in the background may ignore interrupts.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def renew(store: RunStore, own: Heartbeat, count: int) -> bool:
    """Writes the next heartbeat, unless another process took the run over. Returns whether the run is still held."""
    if not _is_held(read_holder(store), own):
        return False
    write_heartbeat(store, own, count)
    return True


def _is_held(found: Heartbeat | None, own: Heartbeat) -> bool:
    """Whether this process still holds the run. A missing lock file was removed by hand, and counts as held."""
    return found is None or found.get("holder") == own["holder"]


def write_heartbeat(store: RunStore, own: Heartbeat, count: int) -> None:
    """Writes a holder's heartbeat; `count` makes it differ from the previous one."""
    store.write(LOCK_FILE, json.dumps({**own, "beat": count}).encode())


def wait_until_free(
    store: RunStore,
    path: str,
    *,
    polls: int = MAX_SILENT_POLLS,
    sleep: Sleep = time.sleep,
    on_wait: Callable[[str], None] = lambda text: None,
) -> None:
    """Waits until no process holds the run. A holder without a heartbeat in `polls` polls counts as dead.

    The holder's clock is not read. Polls are counted instead of seconds: time in which this process was suspended says
    nothing about the holder.

    Args:
        store: The run's files.
        path: The run's folder, for the error text.
        polls: Number of polls.
        sleep: Called with the seconds to sleep.
        on_wait: Called with a message if there is a holder to wait for.

    Raises:
        ValueError: If the holder writes a heartbeat.
    """
    first = read_holder(store)
    if first is None or is_dead_here(first):
        return
    on_wait(f"waiting up to {polls * POLL_SECONDS:.0f} s for a heartbeat: {describe_holder(first)} held this run")
    for _ in range(polls):
        sleep(POLL_SECONDS)
        now = read_holder(store)
        if now is None:
            return
        if now != first:
            raise busy_error(path, now)


def claim(store: RunStore, path: str, own: Heartbeat, *, sleep: Sleep = time.sleep) -> None:
    """Takes a free run. Last writer wins.

    pyarrow offers no lock for object stores. A write that takes longer than a poll may therefore be missed here. The
    losing processes then find out at their next heartbeat, and stop.

    Args:
        store: The run's files.
        path: The run's folder, for the error text.
        own: The result of `new_heartbeat`.
        sleep: Called with the seconds to sleep.

    Raises:
        ValueError: If another process has claimed it.
    """
    write_heartbeat(store, own, 0)
    sleep(POLL_SECONDS)
    found = read_holder(store)
    if found is not None and found.get("holder") != own["holder"]:
        raise busy_error(path, found)


def _taken_over(store: RunStore, path: str) -> str:
    found: Heartbeat | None = None
    with suppress(OSError):
        found = read_holder(store)
    return (
        f"Cannot continue the run in {path}: {describe_holder(found or {})} has taken it over, because this process "
        f"wrote no heartbeat for more than {MAX_SILENT_POLLS * POLL_SECONDS:.0f} s. Finished results are kept."
    )
