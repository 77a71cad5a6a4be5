"""scikit-learn's digits: 1,797 real 8x8 scans that ship with the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

NUM_TEST, NUM_VALIDATION = 1000, 297


def digits(split_seed: int) -> dict[str, Any]:
    """Returns 500 training, 297 validation and 1,000 test images (1, 8, 8) in [0, 1], shuffled by `split_seed`.

    Source: UCI optical recognition of handwritten digits, as `sklearn.datasets.load_digits` ships it.
    """
    from sklearn.datasets import load_digits  # takes a second to import, and checking a recipe does not need it

    bunch = load_digits()
    order = np.random.default_rng(split_seed).permutation(len(bunch.target))
    images = torch.from_numpy(bunch.images[order]).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target[order])
    test, validation = slice(0, NUM_TEST), slice(NUM_TEST, NUM_TEST + NUM_VALIDATION)
    train = slice(NUM_TEST + NUM_VALIDATION, None)
    return {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": (images[test], labels[test]),
        "num_classes": 10,
    }
