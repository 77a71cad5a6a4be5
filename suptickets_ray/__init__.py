"""Ray-based, ticket-parallel training of sparse neural networks (Sup-tickets, arXiv 2205.15322)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suptickets_ray.distributed.pipeline.run import train as train
    from suptickets_ray.distributed.tune.tune import tune as tune
    from suptickets_ray.metric import Metric as Metric
    from suptickets_ray.offline.csr import load_csr as load_csr
    from suptickets_ray.recipes.load import load_config as load_config
    from suptickets_ray.tickets.averaging import superpose as superpose
    from suptickets_ray.tickets.schedule import plan_budget as plan_budget
    from suptickets_ray.tickets.schedule import triangular as triangular
    from suptickets_ray.tickets.ticket import Ticket as Ticket
    from suptickets_ray.training.task import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "Metric": "suptickets_ray.metric",
    "Task": "suptickets_ray.training.task",
    "Ticket": "suptickets_ray.tickets.ticket",
    "load_csr": "suptickets_ray.offline.csr",
    "load_config": "suptickets_ray.recipes.load",
    "plan_budget": "suptickets_ray.tickets.schedule",
    "superpose": "suptickets_ray.tickets.averaging",
    "train": "suptickets_ray.distributed.pipeline.run",
    "tune": "suptickets_ray.distributed.tune.tune",
    "triangular": "suptickets_ray.tickets.schedule",
}
"""Public name to the module that it is loaded from when first used: importing a layer imports none above it."""

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
