"""What really went wrong, under the wrappers that Ray puts around it."""

from __future__ import annotations

from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

DEATHS = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    OutOfMemoryError,
    ActorUnschedulableError,
    ObjectLostError,
)
"""What a lost process or machine raises in whoever waits for it: the work is done again elsewhere."""


def lost_elsewhere(error: BaseException | None, *, in_object_store: bool) -> bool:
    """Returns whether a Ray Train job failed for what may have passed: a lost machine or process, or a silent storage.

    Args:
        error: What `fit` raised. Of several ranks one is enough: those that are left fail for want of it.
        in_object_store: Whether the run's storage is one; a folder's errors do not pass.
    """
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None) or error}
    causes = [_unwrapped(failure) for failure in failures.values()]
    # Of an object store pyarrow raises OSError itself; those below it, such as FileNotFoundError, are the data's.
    return any(isinstance(cause, DEATHS) or (in_object_store and type(cause) is OSError) for cause in causes)


def _unwrapped(error: BaseException | None) -> BaseException | None:
    """What Ray Train 2.60 wraps: a rank that no longer answers, and what a rank's own code raised."""
    for name in ("health_check_failure", "_base_exc"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return error


def root_cause(error: BaseException) -> str:
    """Returns the type and the last line of the message of the error that a worker raised.

    Args:
        error: What Ray raised: a failed task, a dead actor, or a failed Ray Train job with one error per rank.
    """
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    cause = getattr(error, "cause", None)
    cause = cause if isinstance(cause, BaseException) else error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[-1]}" if lines else type(cause).__name__
