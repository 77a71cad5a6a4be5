"""Torch's threads, arithmetic and deterministic algorithms, which make runs bit-equal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from suptickets_ray.config import Config


def set_determinism(config: Config, *, trains_rank: bool = False) -> None:
    """Sets torch's number of threads and choice of algorithms as the recipe says.

    Args:
        config: The recipe. Threads that are still "auto" are not changed.
        trains_rank: Whether this process is a rank of pretraining. Others use the threads of an explorer.
    """
    # Ray may reuse a process that was set up for another number of CPUs. Sums depend on the number of threads.
    threads = config.cluster.threads_per_worker if trains_rank else config.cluster.threads_per_explorer
    if threads != "auto":
        torch.set_num_threads(threads)
    _set_deterministic(config.train.deterministic)
    _set_gpu_arithmetic(*gpu_arithmetic(config))


def gpu_arithmetic(config: Config) -> tuple[bool, bool]:
    """Returns whether GPUs compute float32 in TF32, and whether cuDNN chooses its algorithms by trying them."""
    benchmark = config.train.cudnn_benchmark
    chooses = not config.train.deterministic if benchmark is None else benchmark
    # Without GPUs both have no effect. torch's own defaults are TF32 for convolutions alone, and no choice.
    return config.train.float32_precision == "tf32", chooses and config.cluster.gpus_per_worker > 0


@contextmanager
def worker_determinism(config: Config) -> Iterator[None]:
    """Computes with the settings of the run's explorers, and restores the previous settings on exit."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    set_determinism(config)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _set_deterministic(deterministic)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        torch.backends.cudnn.benchmark = benchmark


def _set_gpu_arithmetic(uses_tf32: bool, benchmark: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = uses_tf32
    torch.backends.cudnn.benchmark = benchmark


def _set_deterministic(deterministic: bool) -> None:
    if deterministic:
        # cuBLAS reads the variable at its first use. Without it, torch refuses to multiply matrices.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.get_deterministic_debug_mode() != (2 if deterministic else 0):  # setting it loads torch's compiler
        torch.use_deterministic_algorithms(deterministic)
