"""Examples of a split, whatever holds them: a pair of tensors or any map-style Dataset of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import default_collate

from suptickets_ray.config import DataConfig
from suptickets_ray.lookup import suggestion
from suptickets_ray.seeding import derive_seed

_SPLITS = ("train", "validation", "test")


class Examples:
    """Inputs with labels, read in batches by index."""

    def __init__(self, source: Any, size: int | None = None, labels: Tensor | None = None) -> None:
        """Wraps what a data function gave.

        Args:
            source: A pair of tensors (inputs (n, ...), labels (n,)), or a map-style Dataset of such pairs.
            size: Use the first examples only.
            labels: Labels (size,) in place of the source's own.
        """
        self.in_memory = isinstance(source, (tuple, list))
        self._source = (source[0], source[1].long()) if self.in_memory else source
        available = len(source[0]) if self.in_memory else len(source)
        self._size = available if size is None else size
        self._labels = labels

    def __len__(self) -> int:
        return self._size

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns inputs (batch, ...) and labels (batch,) of the given indices (batch,)."""
        if self.in_memory:
            inputs, labels = (tensor[indices] for tensor in self._source)
        else:
            inputs, labels = default_collate([self._source[index] for index in indices.tolist()])
        return inputs, labels if self._labels is None else self._labels[indices]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all examples in their own order, in batches of at most `batch_size`."""
        for indices in torch.arange(len(self)).split(batch_size):
            yield self.batch(indices)

    def all_labels(self) -> Tensor:
        """Returns the labels of all examples (n,); a Dataset is read through for them once."""
        if self._labels is None:
            if self.in_memory:
                return torch.as_tensor(self._source[1][: len(self)])
            self._labels = torch.cat([labels for _, labels in self.batches(1024)])
        return self._labels


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets. Every choice is made on validation; test is read once, for the final numbers."""

    train: Examples
    validation: Examples
    test: Examples
    num_classes: int
    sample_shape: tuple[int, ...]
    """Shape of one input, without the batch."""

    def __post_init__(self) -> None:
        """Raises ValueError if a set is empty."""
        for name in _SPLITS:
            if not len(getattr(self, name)):
                raise ValueError(f"the {name} set must hold at least one example; it is empty.")


def make_splits(loaded: Mapping[str, Any], config: DataConfig) -> Splits:
    """Returns what a data function gave, cut to `train_size` and with label noise.

    Args:
        loaded: "train", "validation" and "test", each a pair of tensors or a Dataset, and optionally "num_classes".
        config: Size, noise and seed.

    Raises:
        ValueError: If a set is missing, of the wrong form, or smaller than asked.
    """
    if not isinstance(loaded, Mapping):
        raise ValueError(f"data.name must return a dict of train, validation and test; got {type(loaded).__name__}.")
    for name in _SPLITS:
        if name not in loaded:
            raise ValueError(f"data.name must return a {name!r} set{suggestion(name, loaded)}")
        source = loaded[name]
        if isinstance(source, (tuple, list)):
            if (
                len(source) != 2
                or not all(isinstance(part, Tensor) for part in source)
                or len(source[0]) != len(source[1])
            ):
                raise ValueError(f"the {name} set must be a pair of tensors (inputs, labels) of equal length.")
            if source[1].is_floating_point():
                raise ValueError(f"the {name} labels must be whole numbers, one class each; got {source[1].dtype}.")
        elif not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
            raise ValueError(
                f"the {name} set must be a pair of tensors or a map-style Dataset; got {type(source).__name__}."
            )
    train = Examples(loaded["train"])
    size = config.train_size or len(train)
    if size > len(train):
        raise ValueError(f"data.train_size must be at most {len(train)}, the examples there are; got {size}.")
    if config.batch_size > size:
        raise ValueError(f"data.batch_size must be at most the {size} training examples; got {config.batch_size}.")
    num_classes = loaded.get("num_classes")
    if num_classes is None:
        num_classes = int(Examples(loaded["train"]).all_labels().max()) + 1
    labels = None
    if config.label_noise:
        clean = Examples(loaded["train"], size).all_labels()
        labels = redraw_labels(clean, config.label_noise, num_classes, config.split_seed)
    train = Examples(loaded["train"], size, labels)
    sample_shape = tuple(train.batch(torch.arange(1))[0].shape[1:])
    return Splits(train, Examples(loaded["validation"]), Examples(loaded["test"]), num_classes, sample_shape)


def redraw_labels(labels: Tensor, share: float, num_classes: int, seed: int) -> Tensor:
    """Returns labels (n,) of which round(share * n), at random, are redrawn uniformly from all classes.

    A redrawn label is right by chance once in `num_classes` times.
    """
    generator = Generator().manual_seed(derive_seed(seed, "label_noise"))
    count = round(share * len(labels))
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    noisy = labels.clone()
    noisy[chosen] = torch.randint(num_classes, (count,), generator=generator, dtype=labels.dtype)
    return noisy
