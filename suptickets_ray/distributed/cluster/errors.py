"""Finds the root causes of failures, which Ray wraps in other errors."""

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
"""Errors that a lost process or machine raises in its callers; the work is repeated elsewhere."""


_PEER_LOSS_TEXTS = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
"""Parts of gloo's error messages. gloo has no error type for a lost peer."""


_DEVICE_TEXTS = ("CUDA error", "CUDA out of memory", "CUDNN_STATUS", "cuDNN error", "CUBLAS_STATUS", "HIP error")
"""Beginnings and parts of the messages of a GPU's errors, which torch raises as RuntimeError, too."""
_OUT_OF_MEMORY_REMEDY = (
    "Cut batches into parts with train.accumulation_steps, lower data.batch_size, or give each process a larger part "
    "of a GPU with cluster.gpus_per_worker and cluster.gpus_per_explorer."
)


def is_device_fault(error: BaseException | None) -> bool:
    """Returns whether a process failed because of its GPU: out of memory, or an error after which it cannot go on.

    The process must then be ended: its GPU stays unusable for it. The work is repeated by another process.
    """
    return any(_is_device_fault(cause) for cause in _causes(error))


def _is_device_fault(cause: BaseException | None) -> bool:
    if isinstance(cause, RayError):  # Ray's own OutOfMemoryError is of the host
        return False
    is_typed = _has_type_name(cause, {"OutOfMemoryError", "AcceleratorError"})
    return is_typed or (isinstance(cause, RuntimeError) and any(text in str(cause) for text in _DEVICE_TEXTS))


def _is_out_of_device_memory(cause: BaseException) -> bool:
    return _is_device_fault(cause) and "out of memory" in str(cause)


def is_transient_failure(error: BaseException | None, *, in_object_store: bool) -> bool:
    """Returns whether a Ray Train job failed for a transient reason: a lost node or process, or a storage timeout.

    Args:
        error: The error that `fit` raised. A GPU's error is transient, but not if its memory is exhausted, which would
            happen again. One transient failure among the ranks suffices, because the other ranks
            fail as a consequence.
        in_object_store: Whether the run's storage is an object store. Errors of a folder are not transient.
    """
    causes = _causes(error)
    # pyarrow raises OSError itself for an object store. Subclasses such as FileNotFoundError come from reading data.
    if any(cause is not None and _is_device_fault(cause) and not _is_out_of_device_memory(cause) for cause in causes):
        return True
    if any(isinstance(cause, DEATHS) or (in_object_store and type(cause) is OSError) for cause in causes):
        return True
    return all(_is_peer_loss(cause) for cause in causes)


def is_placement_timeout(error: BaseException | None) -> bool:
    """Returns whether a Ray Train job ended because its ranks could not be placed for a minute."""
    return any(_has_type_name(cause, {"WorkerGroupStartupTimeoutError"}) for cause in _causes(error))


def has_diverged(error: BaseException | None) -> bool:
    """Returns whether a Ray Train job ended because its loss or weights were not finite."""
    return any(_has_type_name(cause, {"DivergedError"}) for cause in _causes(error))


def _has_type_name(cause: BaseException | None, names: set[str]) -> bool:
    """Compares names because the types of torch and Ray Train take seconds to import."""
    return not names.isdisjoint(kind.__name__ for kind in type(cause).__mro__)


def _is_peer_loss(cause: BaseException | None) -> bool:
    """Whether a rank failed only because another rank was lost, which Ray has not detected yet."""
    is_lost = _has_type_name(cause, {"DistError", "WorkerHealthCheckTimeoutError", "WorkerGroupStartupFailedError"})
    return is_lost or any(text in str(cause) for text in _PEER_LOSS_TEXTS)


def _causes(error: BaseException | None) -> list[BaseException | None]:
    """Returns the unwrapped errors: one for each failed rank of a Ray Train job, otherwise one."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None) or error}
    return [_unwrapped(failure) for failure in failures.values()]


def _unwrapped(error: BaseException | None) -> BaseException | None:
    """Returns the error inside Ray 2.60's wrappers for unresponsive ranks and for errors of user code."""
    for name in ("health_check_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return error


def root_cause(error: BaseException) -> str:
    """Returns the type and the message of the error that a worker raised, in one line.

    Args:
        error: The error that Ray raised: a failed task, a dead actor, or a failed Ray Train job with one error per
            rank.
    """
    causes = [cause for cause in _causes(error) if cause is not None]
    cause = min(causes, key=lambda cause: (not isinstance(cause, DEATHS), _is_peer_loss(cause)))
    cause = (error.__cause__ or cause) if cause is error else cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    # Ray's errors state the reason in the last line. Others state it first, and torch's end in a C++ trace.
    chosen = lines[-1 if isinstance(cause, RayError) else 0] if lines else ""
    if _has_type_name(cause, {"DivergedError"}):
        return chosen
    text = f"{type(cause).__name__}: {chosen}" if chosen else type(cause).__name__
    return f"{text} {_OUT_OF_MEMORY_REMEDY}" if _is_out_of_device_memory(cause) else text
