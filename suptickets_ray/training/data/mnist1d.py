"""MNIST-1D: ten shapes as noisy lines of 40 numbers, generated when the data are loaded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_NUM_CLASSES = 10


def mnist1d(split_seed: int, num_samples: int = 5000, train_share: float = 0.8) -> dict[str, Any]:
    """Returns training and test lines (40,); the validation set is taken from the training set.

    Args:
        split_seed: Seed of the generator.
        num_samples: Total number of lines, at least 20 and a multiple of the 10 classes.
        train_share: Fraction of the lines used for training, in (0, 1); the rest is the test set.

    Raises:
        ValueError: If the `mnist1d` package is not installed, or a size is out of range.

    Source: Greydanus & Kobak, 2011.14439, and its package `mnist1d`.
    """
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise ValueError(
            f"Cannot load data.name=mnist1d without the package mnist1d: {error}. Install suptickets-ray[mnist1d]."
        ) from error
    if num_samples < 2 * _NUM_CLASSES or num_samples % _NUM_CLASSES:
        raise ValueError(f"data.options.num_samples must be at least 20 and a multiple of 10; got {num_samples}.")
    if not 0 < train_share < 1:
        raise ValueError(f"data.options.train_share must be in (0, 1); got {train_share}.")
    settings = get_dataset_args()
    settings.seed, settings.num_samples, settings.train_split = split_seed % 2**32, num_samples, train_share
    with _global_randomness_kept():
        made = make_dataset(settings)
    loaded: dict[str, Any] = {"num_classes": _NUM_CLASSES}
    for split, inputs, labels in (("train", "x", "y"), ("test", "x_test", "y_test")):
        loaded[split] = (torch.as_tensor(made[inputs]).float(), torch.as_tensor(made[labels]).long())
    return loaded


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """Restores Python's and NumPy's global generators on exit, because the package seeds them."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
