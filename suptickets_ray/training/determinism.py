"""How this process computes: part of what makes runs equal bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from suptickets_ray.config import Config


def set_arithmetic(config: Config) -> None:
    """Sets torch's threads and choice of algorithms to what the recipe says."""
    # Ray may hand out a process that was set up for another number of CPUs; sums depend on the number of threads.
    torch.set_num_threads(config.cluster.threads_per_worker)
    _set_deterministic(config.train.deterministic)


@contextmanager
def arithmetic_of(config: Config) -> Iterator[None]:
    """Computes as the workers of the recipe's run do, then as before."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    set_arithmetic(config)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _set_deterministic(deterministic)


def _set_deterministic(deterministic: bool) -> None:
    if deterministic:
        # cuBLAS reads it when it is first used, and torch refuses to multiply matrices without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if torch.get_deterministic_debug_mode() != (2 if deterministic else 0):  # setting it loads torch's compiler
        torch.use_deterministic_algorithms(deterministic)
