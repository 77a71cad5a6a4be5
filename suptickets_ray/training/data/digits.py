"""scikit-learn's digits: 1,797 real 8x8 scans that ship with the package."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUM_TEST, NUM_VALIDATION = 1000, 297


def digits(split_seed: int) -> dict[str, Any]:
    """Returns 500 training, 297 validation and 1,000 test images (1, 8, 8) in [0, 1], shuffled by `split_seed`.

    Source: UCI optical recognition of handwritten digits, as `sklearn.datasets.load_digits` ships it.
    """
    pixels, targets = _read()
    order = np.random.default_rng(split_seed).permutation(len(targets))
    images = torch.from_numpy(pixels[order]).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(targets[order])
    test, validation = slice(0, NUM_TEST), slice(NUM_TEST, NUM_TEST + NUM_VALIDATION)
    train = slice(NUM_TEST + NUM_VALIDATION, None)
    return {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": (images[test], labels[test]),
        "num_classes": 10,
    }


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Returns what `sklearn.datasets.load_digits` does: images (1797, 8, 8) of 0 to 16, and labels.

    The file is read without importing scikit-learn, which takes more than a second.
    """
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
