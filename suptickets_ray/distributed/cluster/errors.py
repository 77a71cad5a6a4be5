"""What really went wrong, under the wrappers that Ray puts around it."""

from __future__ import annotations

from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
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


_HUNG_UP = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
"""What gloo's errors say, which have no type of their own."""


def lost_elsewhere(error: BaseException | None, *, in_object_store: bool) -> bool:
    """Returns whether a Ray Train job failed for what may have passed: a lost machine or process, or a silent storage.

    Args:
        error: What `fit` raised. Of several ranks one is enough: those that are left fail for want of it.
        in_object_store: Whether the run's storage is one; a folder's errors do not pass.
    """
    causes = _causes(error)
    # Of an object store pyarrow raises OSError itself; those below it, such as FileNotFoundError, are the data's.
    if any(isinstance(cause, DEATHS) or (in_object_store and type(cause) is OSError) for cause in causes):
        return True
    return all(_misses_another(cause) for cause in causes)


def lacks_capacity(error: BaseException | None) -> bool:
    """Returns whether a Ray Train job ended because its ranks could not be placed for a minute."""
    return any(_is_of(cause, {"WorkerGroupStartupTimeoutError"}) for cause in _causes(error))


def has_diverged(error: BaseException | None) -> bool:
    """Returns whether a Ray Train job ended because its loss or weights were not finite."""
    return any(_is_of(cause, {"DivergedError"}) for cause in _causes(error))


def _is_of(cause: BaseException | None, names: set[str]) -> bool:
    """By name: torch's and Ray Train's kinds take seconds to import."""
    return not names.isdisjoint(kind.__name__ for kind in type(cause).__mro__)


def _misses_another(cause: BaseException | None) -> bool:
    """Whether a rank only failed because another one hung up, which was lost, and Ray has not noticed that yet."""
    is_hung_up = _is_of(cause, {"DistError", "WorkerHealthCheckTimeoutError", "WorkerGroupStartupFailedError"})
    return is_hung_up or any(text in str(cause) for text in _HUNG_UP)


def _causes(error: BaseException | None) -> list[BaseException | None]:
    """What really went wrong: of a failed Ray Train job in each rank that failed."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None) or error}
    return [_unwrapped(failure) for failure in failures.values()]


def _unwrapped(error: BaseException | None) -> BaseException | None:
    """What Ray 2.60 wraps: a rank that no longer answers, and what a rank's or a task's own code raised."""
    for name in ("health_check_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return error


def root_cause(error: BaseException) -> str:
    """Returns the type and the message of the error that a worker raised, in one line.

    Args:
        error: What Ray raised: a failed task, a dead actor, or a failed Ray Train job with one error per rank.
    """
    causes = [cause for cause in _causes(error) if cause is not None]
    cause = min(causes, key=lambda cause: (not isinstance(cause, DEATHS), _misses_another(cause)))
    cause = (error.__cause__ or cause) if cause is error else cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    # Ray's own errors end in what happened; others begin with it, and torch's end in a trace of C++.
    chosen = lines[-1 if isinstance(cause, RayError) else 0] if lines else ""
    if _is_of(cause, {"DivergedError"}):
        return chosen
    return f"{type(cause).__name__}: {chosen}" if chosen else type(cause).__name__
