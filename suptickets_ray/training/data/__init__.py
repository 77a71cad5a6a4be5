"""Data sets by name. A new one is one function and one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from suptickets_ray.config import DataConfig
from suptickets_ray.lookup import choose_or_import
from suptickets_ray.training.calls import call_with, takes
from suptickets_ray.training.data.digits import digits
from suptickets_ray.training.data.splits import Splits, make_splits

DATASETS: dict[str, Callable[..., Mapping[str, Any]]] = {"digits": digits}

__all__ = ["DATASETS", "Splits", "load_data"]


def load_data(config: DataConfig) -> Splits:
    """Returns the disjoint training, validation and test examples of a recipe.

    Raises:
        ValueError: If the data set is unknown, does not take a setting, or what it gives is no data set.
    """
    loader = choose_or_import(DATASETS, config.name, "data set")
    files = {key: value for key in ("root", "download") if (value := getattr(config, key)) is not None}
    for key in files:
        if not takes(loader, key):
            raise ValueError(f"data.{key} has no effect with data set {config.name!r}, which does not take it.")
    loaded = call_with(loader, "data.name", {"split_seed": config.split_seed}, config.options | files)
    return make_splits(loaded, config)
