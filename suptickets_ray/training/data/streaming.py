"""Streams sets that are too large for memory, in blocks of neighbours.

An epoch visits the blocks in random order, and mixes the examples of some blocks at a time. The order is a pure
function of the seed and the size, so it is the same whether images are read from a folder or from Parquet, by threads
or by Ray Data.
"""

from __future__ import annotations

import itertools
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from suptickets_ray.seeding import derive_seed
from suptickets_ray.training.data.examples import CPU, Batch, Examples

BLOCK_SIZE = 128
"""Default number of examples read at once: neighbours in a folder's listing, or in a Parquet file."""
WINDOW_BLOCKS = 8
"""Number of blocks whose examples are mixed, and which a rank holds in memory."""
_LEAST_PIECE = 4
_WELL_MIXED = 0.9
_MEASURED_BATCH, _MEASURED_BATCHES = 128, 40


class BlockSource(ABC):
    """A set of images that is read block by block. Picklable, so that other processes can read it."""

    labels: Tensor
    """Labels of all examples, int64 (n,)."""
    block_size: int = BLOCK_SIZE
    """Number of examples read at once; the order of an epoch depends on it."""

    def set_block_size(self, block_size: int | None, in_memory: bool) -> None:
        """Sets the recipe's size; None keeps the default. Raises ValueError if it is out of range or has no effect."""
        if block_size is None:
            return
        if in_memory:
            raise ValueError("data.options.block_size has no effect on images that are held in memory. Leave it out.")
        if type(block_size) is not int or block_size < 1:
            raise ValueError(f"data.options.block_size must be a whole number, at least 1; got {block_size!r}.")
        self.block_size = block_size

    @abstractmethod
    def read(self, indices: Sequence[int], seed: int | None) -> Tensor:
        """Returns the uint8 images (len(indices), c, h, w), all of one size.

        Args:
            indices: Positions in [0, n), ascending and near each other.
            seed: Seed of the random crops, combined with each image's index; None for no random crop.
        """

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Job:
    """One block to read."""

    indices: list[int]
    seed: int | None


Fetch = Callable[[BlockSource, Iterable[Job], int], Iterator[Tensor]]
"""Yields the jobs' images in order, and reads some jobs ahead; the number is the maximum of concurrent readers."""


def fetch_by_threads(source: BlockSource, jobs: Iterable[Job], num_readers: int) -> Iterator[Tensor]:
    """Reads in threads of this process; decoding releases Python's global lock."""
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(num_readers, thread_name_prefix="reader") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(source.read, job.indices, job.seed))
                if len(waiting) > num_readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def epoch_pieces(size: int, seed: int, skipped: int, count: int, block_size: int = BLOCK_SIZE) -> list[range]:
    """Returns the positions in [0, size) that a rank reads in an epoch: runs of neighbours, in reading order.

    All blocks in random order form one sequence of positions, and each rank reads one contiguous part of it. No example
    is read twice, and a block is cut only where two parts meet.

    Args:
        size: Number of examples.
        seed: Seed of the order, equal on all ranks.
        skipped: Number of examples of the lower ranks.
        count: Number of examples of this rank.
        block_size: Number of examples of a block.
    """
    starts = range(0, size, block_size)
    order = torch.randperm(len(starts), generator=Generator().manual_seed(seed)).tolist()
    pieces, passed = [], 0
    for block in (range(starts[index], min(starts[index] + block_size, size)) for index in order):
        piece = block[max(skipped - passed, 0) : max(skipped + count - passed, 0)]
        if piece:
            pieces.append(piece)
        passed += len(block)
    return pieces


class StreamedExamples(Examples):
    """Examples of a BlockSource, with the interface of `Examples`. Reading by index costs as much as a block."""

    num_readers = 2
    fetch: Fetch = staticmethod(fetch_by_threads)

    def __init__(self, source: BlockSource, indices: Tensor | None = None, *arguments: Any) -> None:
        """Wraps a source; the other arguments are those of `Examples`."""
        super().__init__(source, indices, *arguments)
        self._blocks = source
        self._reading: Reading | None = None
        if self._labels is None:
            self._labels = source.labels if indices is None else source.labels[indices]

    @staticmethod
    def _labelled(source: Any) -> Any:
        return source

    def batches(self, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """Yields all examples in stored order, in batches of at most `batch_size`, without augmentation."""
        pieces = list(torch.arange(len(self)).split(batch_size))
        jobs = (Job(self._positions(piece), None) for piece in pieces)
        for piece, images in zip(pieces, self.fetch(self._blocks, jobs, self.num_readers), strict=True):
            yield self._prepare(images, self.all_labels()[piece], device, None)

    def epoch(
        self, seed: int, sizes: Sequence[int], device: torch.device = CPU, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Yields this rank's part of every batch; see the module's docstring for the order."""
        lower_sizes = [[len(range(other, size, world_size)) for size in sizes] for other in range(rank + 1)]
        own_sizes = lower_sizes.pop()
        if self._reading is None:
            self._reading = reading_of(self.all_labels(), self._blocks.block_size)
        reading = self._reading
        pieces = epoch_pieces(len(self), seed, sum(map(sum, lower_sizes)), sum(own_sizes), reading.piece_size)
        crop_seed, generator = derive_seed(seed, "crop"), self.augmentation_generator(seed, rank)
        jobs = (Job(self._positions(torch.arange(piece.start, piece.stop)), crop_seed) for piece in pieces)
        images = self.fetch(self._blocks, jobs, self.num_readers)
        mix_generator = Generator().manual_seed(derive_seed(seed, "mix", rank))
        mixed = _mix(zip(pieces, images, strict=True), mix_generator, reading.window)
        for positions, inputs in _rebatch(mixed, own_sizes):
            yield self._prepare(inputs, self.all_labels()[positions], device, generator)

    def _read(self, indices: Tensor) -> Batch:
        ascending, order = indices.sort()
        images = self._blocks.read(ascending.tolist(), None)
        return images[order.argsort()], self._blocks.labels[indices]

    def _positions(self, indices: Tensor) -> list[int]:
        chosen: list[int] = (indices if self._indices is None else self._indices[indices]).tolist()
        return chosen


Piece = tuple[Tensor, Tensor]
"""Positions (n,) and images (n, c, h, w)."""


@dataclass(frozen=True)
class Reading:
    """Granularity of reading an epoch."""

    piece_size: int
    """Number of neighbours read at once: fewer if neighbours have equal labels."""
    window: int
    """Number of pieces whose examples are mixed. Their total number of examples does not depend on the piece size."""


def reading_of(labels: Tensor, block_size: int) -> Reading:
    """Returns the granularity at which batches hold nearly as many classes as shuffled ones.

    If examples are stored in the order of their labels, blocks of neighbours are of one class. Batches of a few classes
    ruin BatchNorm and gradients. A warning then gives the numbers.

    Args:
        labels: Labels (n,) in stored order.
        block_size: Maximum number of neighbours to read at once.
    """
    sizes = [block_size]
    while sizes[-1] > _LEAST_PIECE:
        sizes.append(max(sizes[-1] // 2, _LEAST_PIECE))
    readings = [Reading(size, WINDOW_BLOCKS * block_size // size) for size in sizes]
    shuffled = classes_per_batch(labels[torch.randperm(len(labels), generator=Generator().manual_seed(0))], readings[0])
    found = [classes_per_batch(labels, readings[0])]
    while found[-1] < _WELL_MIXED * shuffled and len(found) < len(readings):
        found.append(classes_per_batch(labels, readings[len(found)]))
    chosen = readings[len(found) - 1]
    if len(found) > 1:
        warnings.warn(
            f"the training examples are stored in the order of their labels: a batch of {_MEASURED_BATCH} read in "
            f"blocks of {block_size} holds {found[0]:.0f} classes, a shuffled one {shuffled:.0f}. They are read in "
            f"pieces of {chosen.piece_size}, which is slower and gives {found[-1]:.0f}. Store them in random order.",
            stacklevel=2,
        )
    return chosen


def classes_per_batch(labels: Tensor, reading: Reading) -> float:
    """Returns the mean number of classes in the first batches of 128 of an epoch with this granularity."""
    size = min(_MEASURED_BATCH, len(labels))
    pieces = epoch_pieces(len(labels), 0, 0, len(labels), reading.piece_size)
    stream = ((piece, torch.arange(piece.start, piece.stop)) for piece in pieces)
    batches = _rebatch(_mix(stream, Generator().manual_seed(0), reading.window), [size] * (len(labels) // size))
    # Several batches, because the first one comes before any example of the window was replaced.
    counts = [len(labels[positions].unique()) for positions, _ in itertools.islice(batches, _MEASURED_BATCHES)]
    return sum(counts) / len(counts)


def _mix(
    pieces: Iterable[tuple[range, Tensor]], generator: Generator, window_size: int = WINDOW_BLOCKS
) -> Iterator[Piece]:
    """Holds the examples of a window of pieces; each new piece replaces random examples, which are yielded.

    So readers deliver one piece at a time, and read while the network trains.
    """
    stream = ((torch.arange(piece.start, piece.stop), images) for piece, images in pieces)
    window = list(itertools.islice(stream, window_size))
    positions, images = (torch.cat(parts) for parts in zip(*window, strict=True))
    del window  # halves the memory
    for more_positions, more_images in stream:
        replaced = torch.randperm(len(positions), generator=generator)[: len(more_positions)]
        yield positions[replaced], images[replaced]
        positions[replaced], images[replaced] = more_positions, more_images
    order = torch.randperm(len(positions), generator=generator)
    yield positions[order], images[order]


def _rebatch(pieces: Iterator[Piece], sizes: Iterable[int]) -> Iterator[Piece]:
    """Cuts the stream into pieces of the given sizes."""
    positions, images = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    for size in sizes:
        while len(positions) < size:
            more_positions, more_images = next(pieces)
            images = torch.cat([images, more_images]) if len(positions) else more_images
            positions = torch.cat([positions, more_positions])
        yield positions[:size], images[:size]
        positions, images = positions[size:], images[size:]
