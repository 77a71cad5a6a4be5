"""One process at a time works on a run: by the system's lock in a folder, by a sign of life in an object store."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import json
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from suptickets_ray.tickets.store import RunStore

LOCK_FILE = ".lock"
BEAT_SECONDS = 10.0
"""How often a holder gives a sign of life."""
LOOK_SECONDS = 1.0
"""How often somebody who waits for the run looks for one."""
SILENT_LOOKS = 105
"""A holder that gave none in so many looks is dead: longer than a run waits for a storage that is out of reach."""

Sign = dict[str, Any]
"""Who holds a run, as its lock's file says."""
Pause = Callable[[float], None]


@contextmanager
def only_process(path: str, on_wait: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Keeps a second process out of a run's folder; the lock goes with its holder, however that ends.

    Args:
        path: The run's folder, or a URI.
        on_wait: Is told, in a sentence, if it must be waited for.

    Raises:
        ValueError: If another process works there, or the folder cannot be written.
        RuntimeError: In an object store, if another process has taken the run over in the meantime.
    """
    with _in_object_store(path, on_wait) if "://" in path else _in_folder(path):
        yield


def check_free(path: str) -> None:
    """Finds out early, and without taking it, whether another process works on a run in a local folder.

    Raises:
        ValueError: If it does. A run in an object store is only known to be busy after some silence: `only_process`.
    """
    file = Path(path) / LOCK_FILE
    if "://" in path or not file.is_file():
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
            raise _busy(path, {}) from error
        except OSError as error:
            raise ValueError(
                f"storage must be on a file system that knows locks, which keep a second process out of {path}; it "
                f"failed: {error}. Mount it with locks (e.g. -o flock), or choose another storage=."
            ) from error
        yield


def _opened_lock(folder: Path) -> IO[bytes]:
    """Returns the lock's file, open; no link is followed, nothing is emptied, and no pipe is waited for.

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


def _foreign_lock(file: Path) -> str:
    return f"{file} must be a regular file of this user; it is something else. Remove it, or choose another name=."


@contextmanager
def _in_object_store(path: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """A file that its holder writes anew all the time."""
    store, own = RunStore(path), own_sign()
    wait_until_free(store, path, on_wait=on_wait)
    try:
        claim(store, path, own)
    except OSError as error:
        raise ValueError(f"storage must be an object store that can be written; got: {error}.") from error
    holder, stop = threading.get_ident(), threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            if stop.wait(BEAT_SECONDS):
                return
            with suppress(OSError):  # out of reach for a while; it is tried again
                if not keep(store, own, count):
                    _raise_in(holder, _TakenOverError)
                    return

    thread = threading.Thread(target=beat, name="sign-of-life", daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(OSError):
                if _is_own(_read(store), own):
                    store.delete(LOCK_FILE)
    except _TakenOverError:
        raise RuntimeError(_lost(store, path)) from None


class _TakenOverError(BaseException):
    """Stops whoever held a run, whatever it was at; nothing on the way catches it."""


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Raises an error in another thread, at the next of Python's own steps that it takes.

    Not by a signal: what was started in the background may take no notice of an interrupt.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def own_sign() -> Sign:
    """Returns what tells this holder from all others, and its process from those of other machines and containers."""
    return {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}


def _machine() -> str:
    """This boot of the machine, and within it the space that process numbers belong to; empty if nobody knows."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def keep(store: RunStore, own: Sign, count: int) -> bool:
    """Gives the next sign of life, unless another process has taken the run over; returns whether it is still held."""
    if not _is_own(_read(store), own):
        return False
    give_sign(store, own, count)
    return True


def _is_own(found: Sign | None, own: Sign) -> bool:
    """Whether nobody else's sign lies there. None at all does not: somebody has removed the file by hand."""
    return found is None or found.get("holder") == own["holder"]


def give_sign(store: RunStore, own: Sign, count: int) -> None:
    """Writes a holder's next sign of life, which differs from the one before."""
    store.write(LOCK_FILE, json.dumps({**own, "beat": count}).encode())


def wait_until_free(
    store: RunStore,
    path: str,
    *,
    looks: int = SILENT_LOOKS,
    pause: Pause = time.sleep,
    on_wait: Callable[[str], None] = lambda text: None,
) -> None:
    """Returns once nobody holds the run; a holder that gives no sign in so many looks is dead.

    Its clock is not looked at, and looks are counted, not seconds: the time in which this process itself stood still
    says nothing about the other one.

    Args:
        store: The run's files.
        path: The run's folder, for the sentence.
        looks: How often to look.
        pause: Waits so many seconds.
        on_wait: Is told that the holder is waited for.

    Raises:
        ValueError: If the holder gives a sign.
    """
    first = _read(store)
    if first is None or _is_dead_here(first):
        return
    on_wait(f"waiting up to {looks * LOOK_SECONDS:.0f} s for a sign of life: {_who(first)} held this run")
    for _ in range(looks):
        pause(LOOK_SECONDS)
        now = _read(store)
        if now is None:
            return
        if now != first:
            raise _busy(path, now)


def claim(store: RunStore, path: str, own: Sign, *, pause: Pause = time.sleep) -> None:
    """Takes a free run; of several that do so at once the last to write has it.

    An object store has no lock that pyarrow knows of, so one whose writing takes longer than a look may still be
    overlooked: until the next sign of life, when all but the last to write find that out and stop.

    Args:
        store: The run's files.
        path: The run's folder, for the sentence.
        own: What `own_sign` gave.
        pause: Waits so many seconds.

    Raises:
        ValueError: If another process has it.
    """
    give_sign(store, own, 0)
    pause(LOOK_SECONDS)
    found = _read(store)
    if found is not None and found.get("holder") != own["holder"]:
        raise _busy(path, found)


def _read(store: RunStore) -> Sign | None:
    """The sign that lies there; what cannot be read as one is somebody's, and holds nothing but its own bytes."""
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


def _is_dead_here(holder: Sign) -> bool:
    """Whether the holder ran on this machine and has ended: then nobody needs to wait for it."""
    if holder.get("host") != socket.gethostname() or not _machine() or holder.get("machine") != _machine():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        return False
    return False


def _who(holder: Sign) -> str:
    known = {"pid", "host"} <= set(holder)
    return f"process {holder['pid']} on {holder['host']}" if known else "another process"


def _busy(path: str, holder: Sign) -> ValueError:
    return ValueError(
        f"the run in {path} must be free; {_who(holder)} works on it. Wait for it, or choose another name=."
    )


def _lost(store: RunStore, path: str) -> str:
    found: Sign | None = None
    with suppress(OSError):
        found = _read(store)
    return (
        f"{_who(found or {})} has taken the run in {path} over, since this one gave no sign of life for longer than "
        f"{SILENT_LOOKS * LOOK_SECONDS:.0f} s. This one stops; what is finished stays."
    )
