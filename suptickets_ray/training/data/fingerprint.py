"""What tells two data sets apart without reading all of them: sizes, labels and first examples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suptickets_ray.tickets.store import RunStore, patiently
from suptickets_ray.training.data.image_folder import EncodedSource
from suptickets_ray.training.data.splits import SPLITS
from suptickets_ray.training.data.streaming import BlockSource

_NUM_FIRST = 4
_LOOKS = 16
"""At an example that may change of itself: with a coin in it, all would be the same once in 32,768 times."""
DATA_FILE = "data.sha256"
"""The fingerprint of the data that a run or search was begun with."""


def fingerprint(loaded: Mapping[str, Any]) -> str:
    """Returns the sha256 of each set's size, its labels where they are at hand, and its first examples.

    Args:
        loaded: What a data function gave. A Dataset of the user's own whose examples change from one look to the next
            counts by its size alone.

    Raises:
        OSError or ValueError: If the first examples of a streamed set cannot be read.
    """
    summary = hashlib.sha256()
    for split in SPLITS:
        if split not in loaded:
            continue
        source = loaded[split]
        is_pair = isinstance(source, (tuple, list))
        summary.update(f"{split} {len(source[1]) if is_pair else len(source)}".encode())
        if is_pair or isinstance(source, BlockSource):
            summary.update(_bytes_of((source[1] if is_pair else source.labels).long()))
        summary.update(_first_examples(source))
    return summary.hexdigest()


def _first_examples(source: Any) -> bytes:
    if isinstance(source, (tuple, list)):
        return _bytes_of(source[0][:_NUM_FIRST])
    indices = list(range(min(_NUM_FIRST, len(source))))
    if isinstance(source, EncodedSource):
        return b"".join(content for _, content in patiently(lambda: source.contents(indices)))
    if isinstance(source, BlockSource):
        return _bytes_of(patiently(lambda: source.read(indices, None)))
    with suppress(Exception), _same_randomness():  # what cannot be read is found, and named, when it is trained on
        looks = {hashlib.sha256(b"".join(_pieces(source[0]))).digest() for _ in range(_LOOKS)}
        return looks.pop() if len(looks) == 1 else b""
    return b""


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Gives an example's augmentation the same random numbers each time, and takes nothing from anybody's."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _pieces(example: Any) -> Iterator[bytes]:
    """An example's content piece by piece. Of a tensor that looks into a larger one only what it shows."""
    if isinstance(example, Tensor):
        yield _bytes_of(example)
    elif isinstance(example, np.ndarray) or hasattr(example, "__array_interface__"):
        array = np.asarray(example)
        yield f"{array.dtype} {array.shape} ".encode() + array.tobytes()
    elif isinstance(example, Mapping):
        for key, value in example.items():
            yield repr(key).encode()
            yield from _pieces(value)
    elif isinstance(example, (tuple, list)):
        for value in example:
            yield from _pieces(value)
    else:
        yield repr(example).encode()


def _bytes_of(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    return f"{plain.dtype} {tuple(plain.shape)} ".encode() + plain.flatten().view(torch.uint8).numpy().tobytes()


def check_data(store: RunStore, found: str) -> None:
    """Finds out whether the data are those that the work in a folder was begun with.

    Where data lie is no part of a recipe's digest, since they may be moved.

    Args:
        store: The folder.
        found: The data's fingerprint.

    Raises:
        ValueError: If they are others.
    """
    if store.exists(DATA_FILE) and store.read(DATA_FILE).decode() != found:
        raise ValueError(
            f"the data must be those that the work in {store.location[1]} was begun with; sizes, labels or first "
            "examples differ. Choose another name=, or set data.root back."
        )
