"""Sets that are too large for memory: read in blocks of neighbours, whoever reads them and wherever they lie.

An epoch visits the blocks in random order, and mixes the examples of some blocks at a time. The order is a pure
function of the seed and the size, so it is the same whether images are read from a folder or from Parquet, by threads
or by Ray Data.
"""

from __future__ import annotations

import itertools
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
"""Examples that are read at once, unless chosen: neighbours in a folder's listing, or in a Parquet file."""
WINDOW_BLOCKS = 8
"""Blocks whose examples are mixed; a rank holds so many in memory."""


class BlockSource(ABC):
    """A set of images that is read block by block. Picklable, so that others can read for us."""

    labels: Tensor
    """Labels of all examples, int64 (n,)."""
    block_size: int = BLOCK_SIZE
    """Examples that are read at once; the order of an epoch depends on it."""

    def set_block_size(self, block_size: int | None, in_memory: bool) -> None:
        """Takes what a recipe says, None for nothing. Raises ValueError if it is out of range or has no effect."""
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
            seed: What the random crop of each image depends on, together with its index; None for no random crop.
        """

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Job:
    """One block to read."""

    indices: list[int]
    seed: int | None


Fetch = Callable[[BlockSource, Iterable[Job], int], Iterator[Tensor]]
"""Reads the jobs' images in order, some jobs ahead; the number says how many readers may work at once."""


def fetch_by_threads(source: BlockSource, jobs: Iterable[Job], num_readers: int) -> Iterator[Tensor]:
    """Reads in threads of this process; decoding lets go of Python's lock."""
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
    """Returns which positions in [0, size) a rank reads in an epoch: runs of neighbours, in the order of reading.

    All blocks in random order make one line of positions; a rank takes a stretch of it, so that no example is read
    twice, by whatever rank, and a block is cut at most where two stretches meet.

    Args:
        size: Number of examples.
        seed: What the order depends on, equal on all ranks.
        skipped: Examples of the lower ranks.
        count: Examples of this rank.
        block_size: Examples of a block.
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
    """Examples of a BlockSource. What `Examples` promises holds, but reading by index costs as much as a block."""

    num_readers = 2
    fetch: Fetch = staticmethod(fetch_by_threads)

    def __init__(self, source: BlockSource, indices: Tensor | None = None, *arguments: Any) -> None:
        """Wraps a source; the other arguments are those of `Examples`."""
        super().__init__(source, indices, *arguments)
        self._blocks = source
        if self._labels is None:
            self._labels = source.labels if indices is None else source.labels[indices]

    @staticmethod
    def _labelled(source: Any) -> Any:
        return source

    def batches(self, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """Yields all examples in their own order, in batches of at most `batch_size`, as they are."""
        pieces = list(torch.arange(len(self)).split(batch_size))
        jobs = (Job(self._positions(piece), None) for piece in pieces)
        for piece, images in zip(pieces, self.fetch(self._blocks, jobs, self.num_readers), strict=True):
            yield self._prepare(images, self.all_labels()[piece], device, None)

    def epoch(
        self, seed: int, sizes: Sequence[int], device: torch.device = CPU, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Yields this rank's share of every batch; see the module's note on the order."""
        shares = [[len(range(other, size, world_size)) for size in sizes] for other in range(rank + 1)]
        mine = shares.pop()
        pieces = epoch_pieces(len(self), seed, sum(map(sum, shares)), sum(mine), self._blocks.block_size)
        crop_seed, generator = derive_seed(seed, "crop"), self.augmenting(seed, rank)
        jobs = (Job(self._positions(torch.arange(piece.start, piece.stop)), crop_seed) for piece in pieces)
        images = self.fetch(self._blocks, jobs, self.num_readers)
        mixed = _mix(zip(pieces, images, strict=True), Generator().manual_seed(derive_seed(seed, "mix", rank)))
        for positions, inputs in _rebatch(mixed, mine):
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


def _mix(pieces: Iterable[tuple[range, Tensor]], generator: Generator) -> Iterator[Piece]:
    """Holds the examples of some pieces; each piece that comes takes the places of random ones, which go out.

    So the readers are asked for one block at a time, and work while the network does.
    """
    stream = ((torch.arange(piece.start, piece.stop), images) for piece, images in pieces)
    window = list(itertools.islice(stream, WINDOW_BLOCKS))
    positions, images = (torch.cat(parts) for parts in zip(*window, strict=True))
    del window  # half of the memory
    for more_positions, more_images in stream:
        places = torch.randperm(len(positions), generator=generator)[: len(more_positions)]
        yield positions[places], images[places]
        positions[places], images[places] = more_positions, more_images
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
