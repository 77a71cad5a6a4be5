"""What tells two data sets apart without reading all of them: sizes, labels and first examples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from suptickets_ray.tickets.store import RunStore
from suptickets_ray.training.data.image_folder import EncodedSource
from suptickets_ray.training.data.splits import SPLITS
from suptickets_ray.training.data.streaming import BlockSource

_NUM_FIRST = 4
DATA_FILE = "data.sha256"
"""The fingerprint of the data that a run or search was begun with."""


def fingerprint(loaded: Mapping[str, Any]) -> str:
    """Returns the sha256 of each set's size, its labels where they are at hand, and its first examples.

    Args:
        loaded: What a data function gave. A Dataset of the user's own whose examples change from one look to the next
            counts by its size alone.
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
    with suppress(Exception):  # one that cannot be read is found, and named, when it is trained on
        if isinstance(source, EncodedSource):
            return b"".join(content for _, content in source.contents(indices))
        if isinstance(source, BlockSource):
            return _bytes_of(source.read(indices, None))
        first, again = _saved(source[0]), _saved(source[0])
        return first if first == again else b""
    return b""


def _saved(example: Any) -> bytes:
    torch.save(example, content := io.BytesIO())
    return content.getvalue()


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
