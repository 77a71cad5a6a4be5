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
from suptickets_ray.recipes.load import from_dict, to_dict
from suptickets_ray.tickets.run_folder import TENSORBOARD_FOLDER
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.data import Splits
from suptickets_ray.training.determinism import set_determinism


def worker_settings(config: Config, run_path: str, monitor: Any, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the argument of `start_worker`, as plain values that can be sent to other processes.

    Args:
        config: The recipe.
        run_path: Absolute path of the run's folder.
        monitor: Handle of the `Monitor`.
        loaded: Result of the recipe's data function. Tensors go to the object store, which holds them once per node.
    """
    return {
        "config": to_dict(config),
        "run_path": run_path,
        # User-defined modules are imported from the driver's folder, which is not on a worker's path.
        "import_paths": [path for path in sys.path if path],
        "folder": str(Path.cwd()),
        "monitor": monitor,
        "tensorboard": child(run_path, TENSORBOARD_FOLDER),
        "data": put_data(loaded),
    }


@dataclass(frozen=True)
class Worker:
    """The context of one worker process."""

    config: Config
    splits: Splits
    store: RunStore
    run_path: str
    tensorboard: str
    """Absolute path or URI of the folder for TensorBoard scalars."""
    device: torch.device
    monitor: Any

    def send(self, event: Event) -> None:
        """Sends a progress event to the driver, without waiting."""
        self.monitor.report.remote(event)


def use_driver_paths(settings: dict[str, Any]) -> None:
    """Gives this process the driver's import paths and working folder, so that relative paths are the same."""
    sys.path.extend(path for path in settings["import_paths"] if path not in sys.path)
    with suppress(OSError):  # another machine may not have this folder
        os.chdir(settings["folder"])  # Ray Train and Ray Tune change the working folder


def start_worker(settings: dict[str, Any], device: torch.device | None = None) -> Worker:
    """Returns the context that `worker_settings` describes, and sets torch's threads and determinism for this process.

    Args:
        settings: Result of `worker_settings`.
        device: Compute device; by default a GPU if the recipe requests GPUs, otherwise the CPU.
    """
    use_driver_paths(settings)
    config = from_dict(settings["config"])
    set_determinism(config)
    if device is None:
        device = torch.device("cuda" if config.cluster.gpus_per_worker > 0 else "cpu")
    return Worker(
        config,
        worker_splits(config, settings["data"]),
        RunStore(settings["run_path"]),
        settings["run_path"],
        settings["tensorboard"],
        device,
        settings["monitor"],
    )
