"""Examples of a split, from a pair of tensors or any map-style Dataset of torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import default_collate

from suptickets_ray.seeding import derive_seed
from suptickets_ray.training.data.augmentation import Augmentation, Scaling, copied_ahead
from suptickets_ray.training.nested import map_tensors, tensors_of

Batch = tuple[Any, Tensor]
"""Network inputs (n, ...), as one tensor, a tuple or a dict of tensors, and targets (n, ...)."""

CPU = torch.device("cpu")


class LabelledDataset:
    """A map-style Dataset with the labels of all its examples, which are given or read once."""

    def __init__(self, dataset: Any, labels: Tensor | None = None) -> None:
        """Wraps a Dataset.

        Args:
            dataset: Returns pairs of an input and a label by index.
            labels: Its labels (n, ...), as `as_targets` returns them; those that the Dataset returns are compared.
        """
        self.dataset = dataset
        self._known = labels

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: Sequence[int]) -> Batch:
        """Returns inputs (len(indices), ...) and labels (len(indices), ...).

        Raises:
            ValueError: If the examples are not pairs, an input is not finite, or the labels differ from known ones.
        """
        inputs, labels = collate([self._example(index) for index in indices])
        if bad := num_not_finite(inputs):
            raise ValueError(f"inputs must be finite; {bad} of {len(inputs)} examples read hold NaN or infinity.")
        if self._known is not None and not torch.equal(labels, self._known[list(indices)]):
            raise ValueError(UNEQUAL_DATA)
        return inputs, labels

    def _example(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except ValueError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"Cannot read example {index} of a Dataset: {reason}") from error

    @cached_property
    def labels(self) -> Tensor:
        """Labels of all examples (n, ...), int64 or float32."""
        if self._known is None:
            starts = range(0, len(self), 1024)
            parts = [self.read(range(start, min(start + 1024, len(self))))[1] for start in starts]
            self._known = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
        return self._known


UNEQUAL_DATA = (
    "data.name must give the same examples in every process and at every call; labels or examples differ. Seed its "
    "random choices, e.g. random_split(..., generator=torch.Generator().manual_seed(split_seed))."
)


class Examples:
    """Inputs with labels, read in batches by index."""

    in_memory: bool
    """Whether the examples are in memory, so that reading one is cheap."""

    def __init__(
        self,
        source: Any,
        indices: Tensor | None = None,
        labels: Tensor | None = None,
        scaling: Scaling | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Wraps one set of a data function.

        Args:
            source: A pair of inputs (m, ...) and labels (m, ...), or a map-style Dataset.
            indices: Indices of the examples in the source, (n,); all when left out.
            labels: Labels (n, ...) that replace those of the source.
            scaling: Converts the source's inputs to network inputs.
            augmentation: Random changes of images, applied by `epoch` only.
        """
        self.in_memory = isinstance(source, (tuple, list))
        self._source: Any = (source[0], as_targets(source[1])) if self.in_memory else self._labelled(source)
        self._indices = indices
        self._size = len(indices) if indices is not None else len(source[1] if self.in_memory else source)
        self._labels = labels
        self._scaling = scaling or Scaling()
        self.augmentation = augmentation or Augmentation()

    @staticmethod
    def _labelled(source: Any) -> Any:
        return source if isinstance(source, LabelledDataset) else LabelledDataset(source)

    def __len__(self) -> int:
        return self._size

    def batch(self, indices: Tensor, device: torch.device = CPU, generator: Generator | None = None) -> Batch:
        """Returns inputs (batch, ...) and labels (batch, ...) of the given indices (batch,), on the device.

        Args:
            indices: Positions in [0, n).
            device: Device of the result. Images are copied there as stored, then augmented and scaled.
            generator: Source of the augmentation, on the CPU; without it nothing is augmented.
        """
        inputs, labels = self._read(indices if self._indices is None else self._indices[indices])
        if self._labels is not None:
            labels = self._labels.index_select(0, indices)
        return self._prepare(inputs, labels, device, generator)

    def raw_inputs(self, count: int) -> Any:
        """Returns up to `count` inputs (n, ...), spread over the set, as they are stored: not scaled, not augmented."""
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self))).long()
        return self._read(chosen if self._indices is None else self._indices[chosen])[0]

    def batches(self, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """Yields all examples in stored order, in batches of at most `batch_size`, without augmentation."""
        for indices in torch.arange(len(self)).split(batch_size):
            yield self.batch(indices, device)

    def epoch(
        self, seed: int, sizes: Sequence[int], device: torch.device = CPU, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Yields this rank's part of every batch of an epoch, shuffled and, if there is an augmentation, augmented.

        Args:
            seed: Seed of the order, equal on all ranks; the augmentation also depends on the rank.
            sizes: Examples of each batch, in total over all ranks; their sum is at most n.
            device: Device of the batches.
            rank: Rank of this process.
            world_size: Number of ranks.
        """
        order = torch.randperm(len(self), generator=Generator().manual_seed(seed))
        generator = self.augmentation_generator(seed, rank)
        for start, size in zip(itertools.accumulate(sizes, initial=0), sizes, strict=False):
            yield self.batch(order[start : start + size][rank::world_size], device, generator)

    def augmentation_generator(self, seed: int, rank: int) -> Generator | None:
        """Returns the generator of an epoch's augmentation on a rank; None if there is no augmentation."""
        if not self.augmentation.does_something:
            return None
        return Generator().manual_seed(derive_seed(seed, "augmentation", rank))

    @cached_property
    def sample_size(self) -> int:
        """Number of elements of one input."""
        return max(sum(tensor.numel() for tensor in tensors_of(self.batch(torch.arange(1))[0])), 1)

    def all_labels(self) -> Tensor:
        """Returns the labels of all examples (n, ...)."""
        if self._labels is None:
            if self.in_memory:
                labels = torch.as_tensor(self._source[1])
                return labels if self._indices is None else labels[self._indices]
            labels = self._source.labels
            self._labels = labels if self._indices is None else labels[self._indices]
        return self._labels

    def _read(self, indices: Tensor) -> Batch:
        if self.in_memory:
            inputs = map_tensors(lambda tensor: tensor.index_select(0, indices), self._source[0])
            return inputs, self._source[1].index_select(0, indices)
        batch: Batch = self._source.read(indices.tolist())
        return batch

    def _prepare(self, inputs: Any, labels: Tensor, device: torch.device, generator: Generator | None) -> Batch:
        inputs = map_tensors(lambda tensor: copied_ahead(tensor, device), inputs)
        labels = copied_ahead(labels, device)
        if not isinstance(inputs, Tensor):
            return map_tensors(_as_float32, inputs), labels
        if generator is not None:
            inputs = self.augmentation(inputs, generator)
        return self._scaling(inputs), labels


def as_targets(labels: Tensor) -> Tensor:
    """Returns labels as int64 if they are whole numbers, else as float32; bool counts as the numbers 0 and 1."""
    return labels.to(torch.float32 if labels.is_floating_point() or labels.dtype == torch.bool else torch.int64)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def num_not_finite(inputs: Any) -> int:
    """Returns how many of the inputs (n, ...) hold NaN or infinity."""
    bad = [
        ~tensor.reshape(len(tensor), -1).isfinite().all(1)
        for tensor in tensors_of(inputs)
        if tensor.is_floating_point()
    ]
    return int(torch.stack(bad).any(0).sum()) if bad else 0


def collate(examples: list[Any]) -> Batch:
    """Returns examples of a user-defined Dataset as inputs (n, ...) and labels (n, ...), int64 or float32.

    Raises:
        ValueError: If the examples are not pairs of an input and a label, or they differ in shape.
    """
    try:
        inputs, labels = default_collate(examples)
        if isinstance(inputs, list):
            inputs = tuple(inputs)
        if not all(isinstance(tensor, Tensor) for tensor in (*tensors_of(inputs), labels)):
            raise TypeError(f"got {type(examples[0][0]).__name__} and {type(examples[0][1]).__name__}")
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(
            f"a Dataset must give pairs of an input, a tensor of one shape, and a label, a number or a tensor: {error}."
        ) from error
    return inputs, as_targets(labels)
