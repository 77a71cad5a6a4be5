"""Tables that ship with scikit-learn: a regression and two classifications."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from suptickets_ray.lookup import choose

TABLES: dict[str, str] = {
    "diabetes": "442 patients, 10 columns; progress of the disease after a year, standardized: a regression",
    "breast_cancer": "569 tumours, 30 columns; malignant or benign",
    "wine": "178 wines, 13 columns; 3 growers",
}
"""Names of the tables."""
_TEST_FRACTION = _VALIDATION_FRACTION = 0.2


def table(split_seed: int, table: str) -> dict[str, Any]:
    """Returns a table of scikit-learn, shuffled by `split_seed`: 60 % training, 20 % validation and 20 % test rows.

    Columns are standardized with the training rows. So are the targets of a regression: the mean squared error is then
    the fraction of the variance that is not explained.

    Args:
        split_seed: Seed of the order.
        table: A key of `TABLES`.

    Raises:
        ValueError: If there is no table of this name.

    Source: `sklearn.datasets.load_diabetes`, `load_breast_cancer` and `load_wine`.
    """
    choose(TABLES, table, "data.options.table")
    from sklearn import datasets  # takes a second to import, and checking a recipe does not need it

    bunch = getattr(datasets, f"load_{table}")()
    is_regression = table == "diabetes"
    order = np.random.default_rng(split_seed).permutation(len(bunch.target))
    inputs = torch.from_numpy(bunch.data[order]).double()
    targets = torch.from_numpy(bunch.target[order])
    num_test, num_validation = (round(fraction * len(order)) for fraction in (_TEST_FRACTION, _VALIDATION_FRACTION))
    parts = {
        "test": slice(0, num_test),
        "validation": slice(num_test, num_test + num_validation),
        "train": slice(num_test + num_validation, None),
    }
    inputs = _standardized(inputs, inputs[parts["train"]])
    targets = _standardized(targets.double(), targets[parts["train"]].double()) if is_regression else targets.long()
    loaded: dict[str, Any] = {name: (inputs[rows], targets[rows]) for name, rows in parts.items()}
    return loaded | {"num_classes": 1 if is_regression else len(bunch.target_names)}


def _standardized(values: Tensor, training: Tensor) -> Tensor:
    """Returns the values with the training values' mean 0 and variance 1, float32."""
    return ((values - training.mean(0)) / training.std(0)).float()
