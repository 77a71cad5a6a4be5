"""What every process of a run needs at its start: the recipe, the data, the device, and equal arithmetic."""

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
from suptickets_ray.distributed.cluster.event_queue import Event
from suptickets_ray.distributed.pipeline.data import put_data, worker_splits
from suptickets_ray.recipes.load import from_dict, to_dict
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.data import Splits
from suptickets_ray.training.determinism import set_arithmetic


def worker_settings(config: Config, run_path: str, monitor: Any, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `start_worker` needs, as plain values that cross processes.

    Args:
        config: The recipe.
        run_path: Absolute path of the run's folder.
        monitor: Handle of the `Monitor`.
        loaded: What the recipe's data function gave. Tensors go to the object store, which holds them once per node.
    """
    return {
        "config": to_dict(config),
        "run_path": run_path,
        # The user's own modules lie where the command was given, which a worker's path does not hold.
        "import_paths": [path for path in sys.path if path],
        "folder": str(Path.cwd()),
        "monitor": monitor,
        "tensorboard": child(run_path, "tensorboard"),
        "data": put_data(loaded),
    }


@dataclass(frozen=True)
class Worker:
    """The surroundings of one process."""

    config: Config
    splits: Splits
    store: RunStore
    run_path: str
    tensorboard: str
    """Absolute path of the tree that its scalars go to."""
    device: torch.device
    monitor: Any

    def report(self, kind: str, **values: Any) -> None:
        """Tells the person who watches, without waiting."""
        self.send({"kind": kind, **values})

    def send(self, event: Event) -> None:
        """Sends an event on its way, without waiting."""
        self.monitor.report.remote(event)


def follow(settings: dict[str, Any]) -> None:
    """Lets this process import what the process that gave the command can, and read by the same relative paths."""
    sys.path.extend(path for path in settings["import_paths"] if path not in sys.path)
    with suppress(OSError):  # another machine need not have that folder
        os.chdir(settings["folder"])  # Ray Train and Ray Tune go to folders of their own


def start_worker(settings: dict[str, Any], device: torch.device | None = None) -> Worker:
    """Returns the surroundings that `worker_settings` describes, with torch's threads set as the recipe says.

    Args:
        settings: The settings.
        device: Where to compute; by default a GPU if the recipe asks for them, and the CPU if not.
    """
    follow(settings)
    config = from_dict(settings["config"])
    set_arithmetic(config)
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
