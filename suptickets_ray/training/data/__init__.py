"""Data sets by name. A new one is one function and one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from suptickets_ray.config import DataConfig
from suptickets_ray.lookup import choose_or_import
from suptickets_ray.training.calls import call_with
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
    chosen = {"root": config.root, "download": config.download}
    options = {**config.options, **{key: value for key, value in chosen.items() if value is not None}}
    loaded = call_with(loader, "data.name", {"split_seed": config.split_seed}, options)
    return make_splits(loaded, config)
