import pytest
from ray.exceptions import ActorDiedError, NodeDiedError
from ray.exceptions import OutOfMemoryError as HostOutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from torch import AcceleratorError, OutOfMemoryError
from torch.distributed import DistBackendError

from suptickets_ray.distributed.cluster.errors import has_diverged, is_device_fault, is_transient_failure, root_cause


class Wrapped(RuntimeError):
    def __init__(self, cause=None, worker_failures=None):
        super().__init__("wrapped")
        self.cause, self.worker_failures = cause, worker_failures


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ArithmeticError("\n the planted fault\nException raised from C++"), "ArithmeticError: the planted fault"),
        (NodeDiedError("It died.\n\tits node was lost"), "NodeDiedError: its node was lost"),
        (Wrapped(cause=KeyError("x")), "KeyError: 'x'"),
        (Wrapped(worker_failures={1: Wrapped(cause=ValueError("deep"))}), "ValueError: deep"),
        (AssertionError(), "AssertionError"),
        (Wrapped(cause="a text"), "Wrapped: wrapped"),
    ],
)
def test_the_workers_own_error_is_named_with_its_type(error, expected):
    assert root_cause(error) == expected


def of_ranks(*errors):
    return WorkerGroupError("failed", dict(enumerate(errors)))


GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer\nException raised from read_one")
SILENT = OSError("When completing multiple part upload: AWS Error NETWORK_CONNECTION")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (of_ranks(WorkerHealthCheckFailedError("gone", ActorDiedError())), True),
        # The rank that is left fails for want of the lost one.
        (of_ranks(UserExceptionWithTraceback(RuntimeError("gloo"), ""), NodeDiedError("gone")), True),
        (of_ranks(UserExceptionWithTraceback(GLOO, "")), True),  # whose loss Ray has not noticed yet
        (of_ranks(UserExceptionWithTraceback(DistBackendError("NCCL"), "")), True),
        (of_ranks(WorkerHealthCheckTimeoutError("hangs")), True),
        # Its fault, not that of the rank that it leaves alone.
        (of_ranks(UserExceptionWithTraceback(GLOO, ""), UserExceptionWithTraceback(KeyError("x"), "")), False),
        (of_ranks(UserExceptionWithTraceback(SILENT, "")), True),
        (ControllerError(SILENT), True),
        (NodeDiedError("the controller's"), True),
        (of_ranks(UserExceptionWithTraceback(FileNotFoundError("data/labels"), "")), False),
        (of_ranks(UserExceptionWithTraceback(ValueError("the planted fault"), "")), False),
        (ControllerError(ValueError("snapshot")), False),
        (None, False),
    ],
)
def test_lost_machines_and_silent_storages_are_told_from_faults_of_the_code(error, expected):
    assert is_transient_failure(error, in_object_store=True) == expected


def test_what_a_folder_refuses_does_not_pass():
    assert not is_transient_failure(ControllerError(OSError(28, "No space left on device")), in_object_store=False)


def test_of_several_ranks_the_one_that_is_to_blame_is_named():
    own = UserExceptionWithTraceback(KeyError("x"), "Traceback\n  ...")
    assert root_cause(of_ranks(UserExceptionWithTraceback(GLOO, ""), own)) == "KeyError: 'x'"
    gone = WorkerHealthCheckFailedError("gone", NodeDiedError("It died.\nits node was lost"))
    assert root_cause(of_ranks(own, gone)) == "NodeDiedError: its node was lost"
    alone = "RuntimeError: [gloo/transport/tcp/pair.cc:538] Connection closed by peer"
    assert root_cause(of_ranks(UserExceptionWithTraceback(GLOO, ""))) == alone


def test_a_diverged_job_is_known_by_its_rank_and_named_without_its_type():
    class DivergedError(RuntimeError):
        pass

    failed = Wrapped(worker_failures={0: DivergedError("pretraining has diverged: a weight")})
    assert has_diverged(failed)
    assert not has_diverged(RuntimeError("else"))
    assert root_cause(failed) == "pretraining has diverged: a weight"


CUDA = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported late")
OUT_OF_MEMORY = OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee the documentation")


@pytest.mark.parametrize(
    ("error", "is_fault", "is_transient"),
    [
        (Wrapped(cause=CUDA), True, True),
        (Wrapped(cause=OUT_OF_MEMORY), True, False),  # it would happen again
        (Wrapped(cause=AcceleratorError("CUDA error: unspecified launch failure")), True, True),
        (of_ranks(UserExceptionWithTraceback(CUDA, "")), True, True),
        (of_ranks(UserExceptionWithTraceback(OUT_OF_MEMORY, "")), True, False),
        (HostOutOfMemoryError("the node's memory"), False, True),
        (Wrapped(cause=ValueError("a sentence about a CUDA error")), False, False),
        (Wrapped(cause=KeyError("x")), False, False),
    ],
)
def test_a_fault_of_a_gpu_is_told_from_a_bug(error, is_fault, is_transient):
    assert is_device_fault(error) == is_fault
    assert is_transient_failure(error, in_object_store=False) == is_transient


def test_exhausted_memory_of_a_gpu_names_the_keys_to_change():
    said = root_cause(Wrapped(cause=OUT_OF_MEMORY))
    assert said.startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. Cut batches into parts")
    assert all(key in said for key in ("train.accumulation_steps", "data.batch_size", "cluster.gpus_per_explorer"))
