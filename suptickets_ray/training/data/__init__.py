"""Data sets by name. A new data set takes one function and one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from suptickets_ray.config import DataConfig
from suptickets_ray.lookup import choose_or_import
from suptickets_ray.training.data.digits import digits
from suptickets_ray.training.data.image_folder import image_folder, imagenet
from suptickets_ray.training.data.mnist1d import mnist1d
from suptickets_ray.training.data.parquet import parquet
from suptickets_ray.training.data.splits import Splits, make_splits, with_labels
from suptickets_ray.training.data.synthetic import synthetic
from suptickets_ray.training.data.tables import table
from suptickets_ray.training.data.text import python_docs
from suptickets_ray.training.data.vision import cifar10, cifar100, fashion_mnist, mnist
from suptickets_ray.training.user_code import call_with, takes

DATASETS: dict[str, Callable[..., Mapping[str, Any]]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "image_folder": image_folder,
    "parquet": parquet,
    "mnist1d": mnist1d,
    "table": table,
    "python_docs": python_docs,
    "synthetic": synthetic,
}

__all__ = ["DATASETS", "Splits", "load_data", "load_source", "make_splits"]


def load_data(config: DataConfig) -> Splits:
    """Returns the disjoint training, validation and test examples of a recipe.

    Raises:
        ValueError: If the data set is unknown, does not take a setting, or returns no valid data set.
    """
    return make_splits(load_source(config), config)


def load_source(config: DataConfig) -> Mapping[str, Any]:
    """Calls the recipe's data function and returns its result, which `make_splits` takes.

    Raises:
        ValueError: If the data set is unknown, does not take a setting, or fails.
    """
    loader = choose_or_import(DATASETS, config.name, "data set")
    files = {key: value for key in ("root", "download") if (value := getattr(config, key)) is not None}
    for key in ("root", "download"):
        if key in config.options:
            raise ValueError(f"data.{key} must not be an option; got data.options.{key}. Rename it to data.{key}.")
    for key in files:
        if not takes(loader, key):
            raise ValueError(f"data.{key} has no effect with data set {config.name!r}, which does not take it.")
    loaded: Mapping[str, Any] = call_with(
        loader, "data.name", {"split_seed": config.split_seed}, config.options | files
    )
    return with_labels(loaded)
