import pytest

from suptickets_ray.distributed.failures import root_cause


class Wrapped(RuntimeError):
    def __init__(self, cause=None, worker_failures=None):
        super().__init__("wrapped")
        self.cause, self.worker_failures = cause, worker_failures


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ArithmeticError("first line\nthe planted fault"), "ArithmeticError: the planted fault"),
        (Wrapped(cause=KeyError("x")), "KeyError: 'x'"),
        (Wrapped(worker_failures={1: Wrapped(cause=ValueError("deep"))}), "ValueError: deep"),
        (AssertionError(), "AssertionError"),
        (Wrapped(cause="a text"), "Wrapped: wrapped"),
    ],
)
def test_the_workers_own_error_is_named_with_its_type(error, expected):
    assert root_cause(error) == expected
