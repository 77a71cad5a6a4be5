"""The parent process of a driver.

If a process of a local Ray dies, Ray also ends the driver, without a Python exception. The parent then starts the
driver again, once. After any end of the driver it removes the remaining processes of its local Ray.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

EXIT_FAILED = 1
_GRACE_SECONDS = 3.0
"""Time for the processes of a Ray to end by themselves."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_USES_LOCAL_RAY, _LOST_RAY, _ENDED = b"l", b"x", b"e"

_to_parent: list[int] = []
"""In a supervised driver: the file descriptor of a pipe to its parent."""


def report_local_ray() -> None:
    """Reports to the parent process, if there is one, that this driver uses a local Ray."""
    _report(_USES_LOCAL_RAY)


def report_lost_ray() -> None:
    """Reports to the parent process, if there is one, that this driver fails because its local Ray failed."""
    _report(_LOST_RAY)


def supervise(drive: Callable[[], int]) -> int:
    """Runs a driver in a child process, and returns its exit code.

    A driver whose local Ray failed runs a second time. SIGINT and SIGTERM are forwarded. On other systems than Linux
    the driver runs in this process.

    Args:
        drive: Runs the driver and returns its exit code. Called before anything large is imported.
    """
    if sys.platform != "linux":
        return drive()
    _set_process_control(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the driver become children of this process
    end = _run(drive)
    again = ""
    if end.lost_ray and not end.interrupted:
        again = " again"
        _say("The local Ray failed. It is started again, once; the run continues from what is finished.")
        end = _run(drive)
    if end.lost_ray:
        _say(f"Cannot continue: the local Ray failed{again}. The same command continues from what is finished.")
    elif not end.is_orderly:
        _say(f"Cannot continue: {end.cause}. The same command continues from what is finished.")
    return end.code if end.is_orderly else EXIT_FAILED


@dataclass
class _End:
    """How a driver ended."""

    status: int
    """The status that `os.waitpid` returned."""
    reports: bytes
    interrupted: bool

    @property
    def is_orderly(self) -> bool:
        """Whether Python ended it, with any exit code."""
        return _ENDED in self.reports and self.code >= 0

    @property
    def code(self) -> int:
        return os.waitstatus_to_exitcode(self.status)

    @property
    def lost_ray(self) -> bool:
        """Whether its local Ray failed: it reported that, or Ray ended it. SIGKILL comes from the kernel or a user."""
        ended_by_ray = not self.is_orderly and _USES_LOCAL_RAY in self.reports and self.code != -signal.SIGKILL
        return _LOST_RAY in self.reports or ended_by_ray

    @property
    def cause(self) -> str:
        if self.code < 0:
            return f"the driver was ended by {signal.Signals(-self.code).name}"
        return f"Ray ended the driver with exit code {self.code}"


@dataclass
class _Signals:
    """Blocks signals to the parent process until `_wait` reads them."""

    held: set[int] = field(default_factory=lambda: {signal.SIGCHLD, *_FORWARDED})

    def __enter__(self) -> _Signals:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self.held)
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def _run(drive: Callable[[], int]) -> _End:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with _Signals() as signals:
        driver = os.fork()
        if driver == 0:
            os.close(reader)
            _to_parent[:] = [writer]
            signals.release()
            # The driver ends with its parent, and shuts its Ray down: Ray's agents outlive a killed raylet by 30 s.
            _set_process_control(_PR_SET_PDEATHSIG, signal.SIGTERM)
            try:
                sys.exit(drive())  # runs exit handlers, Ray's among them
            finally:
                _report(_ENDED)
        os.close(writer)
        status, interrupted = _wait(driver)
    with os.fdopen(reader, "rb") as reports:
        end = _End(status, _read(reports.fileno()), interrupted)
    _end_ray()
    return end


def _wait(driver: int) -> tuple[int, bool]:
    """Returns the driver's status, and whether it was interrupted."""
    interrupted = False
    while True:
        info = signal.sigwaitinfo({signal.SIGCHLD, *_FORWARDED})
        if info.si_signo in _FORWARDED:
            interrupted = True
            if info.si_code <= 0:  # a signal from the terminal also reached the driver
                os.kill(driver, info.si_signo)
            continue
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == driver:
                    return ended[1], interrupted


def _read(pipe: int) -> bytes:
    """Returns the content of the pipe without waiting for its end: a remaining process may hold it open."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        return os.read(pipe, 1024)
    return b""


def _end_ray() -> None:
    """Ends the remaining processes of the driver's Ray. Other programs that the driver started keep running."""
    import psutil

    spec = find_spec("ray")
    marks = ("ray::", *(spec.submodule_search_locations or () if spec else ()))

    def is_ray(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return any(word.startswith(marks) for word in process.cmdline())
        return False

    left = [process for process in psutil.Process().children(recursive=True) if is_ray(process)]
    _, left = psutil.wait_procs(left, _GRACE_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, _GRACE_SECONDS)


def _report(what: bytes) -> None:
    for pipe in _to_parent:
        with contextlib.suppress(OSError):
            os.write(pipe, what)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _set_process_control(option: int, value: int) -> None:
    """Calls prctl(2), which the standard library does not have."""
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
