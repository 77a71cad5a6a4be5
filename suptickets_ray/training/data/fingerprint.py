"""Fingerprints of data sets from sizes, labels and some examples, without reading everything."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from suptickets_ray.config import DataConfig
from suptickets_ray.tickets.run_folder import DATA_FILE
from suptickets_ray.tickets.store import RunStore, patiently
from suptickets_ray.training.data import Splits, load_source, make_splits
from suptickets_ray.training.data.examples import LabelledDataset
from suptickets_ray.training.data.image_folder import EncodedSource
from suptickets_ray.training.data.splits import SPLITS
from suptickets_ray.training.data.streaming import BlockSource
from suptickets_ray.training.nested import map_tensors

_NUM_FIRST = 4
_NUM_SPREAD = 32
_DEEPEST = 20
_NUM_REPEATS = 16
"""Reads of the first example that detect random examples. One that depends on a fair coin is missed once in 32,768."""


def fingerprint(loaded: Mapping[str, Any]) -> str:
    """Returns the sha256 of each set's size, labels or indices, and some examples, without reading all of them.

    Every process that loads the data computes it, and so does every later command. For a user-defined Dataset it covers
    the indices of a `Subset`, labels in attributes (`targets`, `labels`, `tensors`), and 32 examples spread over the
    set. All labels of a `LabelledDataset` are compared when its examples are read.

    Args:
        loaded: Result of a data function. If the examples of a Dataset change between reads, only its size, indices and
            labels count.

    Raises:
        OSError or ValueError: If examples of a streamed set cannot be read.
    """
    summary = hashlib.sha256()
    for split in SPLITS:
        if split not in loaded:
            continue
        source = loaded[split].dataset if isinstance(loaded[split], LabelledDataset) else loaded[split]
        is_pair = isinstance(source, (tuple, list))
        summary.update(f"{split} {len(source[1]) if is_pair else len(source)}".encode())
        if is_pair or isinstance(source, BlockSource):
            labels = source[1] if is_pair else source.labels
            summary.update(_bytes_of(labels if labels.is_floating_point() else labels.long()))
            summary.update(_first_examples(source))
        else:
            summary.update(b"".join(_choices(source)))
            summary.update(_some_examples(source))
    return summary.hexdigest()


def _choices(dataset: Any, depth: int = 0) -> Iterator[bytes]:
    """Yields the indices and labels that a Dataset stores in attributes."""
    if depth > _DEEPEST:
        return
    if isinstance(dataset, Subset):
        yield np.asarray(dataset.indices, dtype=np.int64).tobytes()
        yield from _choices(dataset.dataset, depth + 1)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _choices(part, depth + 1)
    elif isinstance(dataset, TensorDataset):
        yield from map(_bytes_of, dataset.tensors[1:])
    else:
        for name in ("targets", "labels"):
            with suppress(Exception):  # a user-defined class may use these names for anything
                yield _bytes_of(torch.as_tensor(getattr(dataset, name)))


def _first_examples(source: Any) -> bytes:
    if isinstance(source, (tuple, list)):
        first = map_tensors(lambda tensor: tensor[:_NUM_FIRST], source[0])
        return _bytes_of(first) if isinstance(first, Tensor) else b"".join(_pieces(first))
    indices = list(range(min(_NUM_FIRST, len(source))))
    if isinstance(source, EncodedSource):
        return b"".join(content for _, content in patiently(lambda: source.contents(indices)))
    return _bytes_of(patiently(lambda: source.read(indices, None)))


def _some_examples(dataset: Any) -> bytes:
    """Returns the digests of examples at fixed positions; nothing if the first example changes between reads."""
    with suppress(Exception), _seeded_generators():  # training reports examples that cannot be read
        digests = {_digest(dataset[0]) for _ in range(_NUM_REPEATS)}
        if len(digests) == 1:
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
            return b"".join([*digests, *(_digest(dataset[index]) for index in order[:_NUM_SPREAD].tolist())])
    return b""


def _digest(example: Any) -> bytes:
    return hashlib.sha256(b"".join(_pieces(example))).digest()


@contextmanager
def _seeded_generators() -> Iterator[None]:
    """Seeds the global generators, which an example's augmentation may use, and restores them on exit."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.default_generator.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _pieces(example: Any) -> Iterator[bytes]:
    """Yields an example's content piece by piece. For a view into a larger tensor, only the view counts."""
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


def load_recorded(config: DataConfig, store: RunStore) -> Splits:
    """Returns the splits of a run's recipe, for work on the run's stored results.

    Args:
        config: The recipe's data; `root` may differ from the run's.
        store: The run's folder.

    Raises:
        ValueError: As `load_data`, and if the data are not those of the run.
    """
    loaded = load_source(config)
    check_data(store, fingerprint(loaded))
    return make_splits(loaded, config)


def check_data(store: RunStore, found: str) -> None:
    """Checks that the data are those that the work in a folder started with.

    The location of the data is not part of a recipe's digest, because data may be moved.

    Args:
        store: The folder.
        found: Fingerprint of the data.

    Raises:
        ValueError: If the data differ.
    """
    if store.exists(DATA_FILE) and store.read(DATA_FILE).decode() != found:
        raise ValueError(
            f"the data must be those that the work in {store.location[1]} was begun with; sizes, labels or some "
            "examples differ. Choose another name=, or set data.root back."
        )
