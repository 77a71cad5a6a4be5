"""English text that ships with Python, as sequences of characters."""

from __future__ import annotations

import importlib
import string
from typing import Any

import numpy as np
import torch

_CHARACTERS = string.printable[:95] + "\n"
NUM_TOKENS = len(_CHARACTERS) + 1
"""The printable ASCII characters, the end of a line, and one token for all others."""
_TEST_FRACTION = _VALIDATION_FRACTION = 0.1


def python_docs(split_seed: int, length: int = 64, num_characters: int | None = None) -> dict[str, Any]:
    """Returns Python's own reference as sequences of characters, for the task language_model.

    The texts of `help("for")` and 70 other topics, about 700,000 characters in all. Whole topics, in an order drawn
    with `split_seed`, go to the test set (a tenth of the characters), to validation (a tenth), and to training.

    Args:
        split_seed: Seed of the order of the topics.
        length: Characters of a sequence; inputs and labels are int64 (n, length), labels one character later.
        num_characters: Characters to use, from the start of that order; all when left out.

    Raises:
        ValueError: If the text is not installed, or it is too short for a sequence of each set.

    Source: `pydoc_data.topics` of the Python that runs. Other versions of Python have another text, which the run's
        fingerprint of the data detects.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise ValueError(
            "Cannot load python_docs: this Python has no pydoc_data. Install its whole library."
        ) from error
    names = np.random.default_rng(split_seed).permutation(sorted(topics))
    tokens = torch.tensor([_token(character) for name in names for character in topics[name]][:num_characters])
    num_test, num_validation = (int(fraction * len(tokens)) for fraction in (_TEST_FRACTION, _VALIDATION_FRACTION))
    parts = tokens.split([num_test, num_validation, len(tokens) - num_test - num_validation])
    if length < 1 or min(map(len, parts)) <= length:
        raise ValueError(
            f"data.options.length must be at least 1 and below a tenth of the {len(tokens)} characters; got {length}."
        )
    loaded: dict[str, Any] = {}
    for name, part in zip(("test", "validation", "train"), parts, strict=True):
        count = (len(part) - 1) // length
        loaded[name] = (part[: count * length].view(count, length), part[1 : count * length + 1].view(count, length))
    return loaded | {"num_classes": NUM_TOKENS}


_TOKENS = {character: number for number, character in enumerate(_CHARACTERS)}


def _token(character: str) -> int:
    return _TOKENS.get(character, NUM_TOKENS - 1)
