"""Sets up the processes of a run: the recipe, the data, the device, and deterministic arithmetic."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from suptickets_ray.config import Config
from suptickets_ray.distributed.pipeline.data import put_data, worker_splits
from suptickets_ray.progress.events import Event
from suptickets_ray.tickets.run_folder import TENSORBOARD_FOLDER
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.data import Splits
from suptickets_ray.training.determinism import set_determinism


@dataclass(frozen=True)
class WorkerContext:
    """What the driver sends to every worker process of a run: ranks, explorers, the superposer and merge shards."""

    config: Config
    """The recipe."""
    run_path: str
    """Absolute path or URI of the run's folder."""
    tensorboard: str
    """Absolute path or URI of the folder for TensorBoard scalars."""
    import_paths: tuple[str, ...]
    """The driver's import paths, because user-defined modules are not on a worker's path."""
    folder: str
    """The driver's working folder, which relative paths in the recipe refer to."""
    monitor: Any
    """Handle of the `Monitor`, which receives progress events."""
    data: Any
    """Result of `put_data`: the data, which the object store holds once per node."""

    @classmethod
    def create(cls, config: Config, run_path: str, monitor: Any, loaded: Mapping[str, Any]) -> WorkerContext:
        """Returns the context of a run whose driver is this process.

        Args:
            config: The recipe.
            run_path: Absolute path or URI of the run's folder.
            monitor: Handle of the `Monitor`.
            loaded: Result of the recipe's data function.
        """
        import_paths = tuple(path for path in sys.path if path)
        tensorboard = child(run_path, TENSORBOARD_FOLDER)
        return cls(config, run_path, tensorboard, import_paths, str(Path.cwd()), monitor, put_data(loaded))


@dataclass(frozen=True)
class Worker:
    """One worker process of a run, and what it has loaded."""

    config: Config
    splits: Splits
    store: RunStore
    tensorboard: str
    """Absolute path or URI of the folder for TensorBoard scalars."""
    device: torch.device
    monitor: Any

    def send(self, event: Event) -> None:
        """Sends a progress event to the driver, without waiting."""
        self.monitor.report.remote(event)


def use_driver_paths(context: WorkerContext) -> None:
    """Gives this process the driver's import paths and working folder, so that relative paths are the same."""
    sys.path.extend(path for path in context.import_paths if path not in sys.path)
    with suppress(OSError):  # another machine may not have this folder
        os.chdir(context.folder)  # Ray Train and Ray Tune change the working folder


def start_worker(context: WorkerContext, device: torch.device | None = None, *, trains_rank: bool = False) -> Worker:
    """Returns this process's `Worker`, and sets torch's threads and determinism for this process.

    Args:
        context: What the driver has sent.
        device: Compute device; by default a GPU if the recipe requests GPUs, otherwise the CPU.
        trains_rank: Whether this process is a rank of pretraining.
    """
    use_driver_paths(context)
    config = context.config
    set_determinism(config, trains_rank=trains_rank)
    if device is None:
        device = torch.device("cuda" if config.cluster.gpus_per_worker > 0 else "cpu")
    share = config.cluster.gpus_per_worker if trains_rank else config.cluster.explorer_gpus
    if device.type == "cuda" and 0 < share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)  # so that the others' parts stay theirs
    splits, store = worker_splits(config, context.data), RunStore(context.run_path)
    return Worker(config, splits, store, context.tensorboard, device, context.monitor)
