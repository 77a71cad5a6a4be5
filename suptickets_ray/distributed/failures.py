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
