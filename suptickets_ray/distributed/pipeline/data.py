"""Data across processes: in-memory data is held once per node in the object store, other data is streamed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from suptickets_ray.config import Config
from suptickets_ray.training.data import Splits, load_source, make_splits
from suptickets_ray.training.data.examples import UNEQUAL_DATA, LabelledDataset
from suptickets_ray.training.data.fingerprint import fingerprint
from suptickets_ray.training.data.parquet import EncodedParquet, TensorParquet
from suptickets_ray.training.data.streaming import BlockSource, Job, StreamedExamples, fetch_by_threads
from suptickets_ray.training.nested import map_tensors


@dataclass(frozen=True)
class UnsharedData:
    """Description of data that every process must load itself."""

    fingerprint: str
    labels: dict[str, NDArray[Any]]
    """All labels (n, ...) of the splits that are map-style Datasets, as the driver has read them."""


def put_data(loaded: Mapping[str, Any]) -> Any:
    """Returns an object reference of a data function's result, or of its description.

    Tensors become arrays, which workers map instead of copying. Each process loads a user-defined Dataset itself,
    because the Dataset may not be serializable. Its labels are sent, so that they are read only once.
    """
    parts = _parts(loaded)
    shared = {name: _as_arrays(part) for name, part in parts.items()}
    if any(part is None for part in shared.values()):
        labels = {name: part.labels.numpy() for name, part in parts.items() if isinstance(part, LabelledDataset)}
        return ray.put(UnsharedData(fingerprint(loaded), labels))
    return ray.put({**loaded, **shared})


def worker_splits(config: Config, shared: Any) -> Splits:
    """Returns the recipe's splits of the data that `put_data` put into the object store.

    Raises:
        ValueError: If this process loads other data than the driver.
    """
    found = ray.get(shared)
    if isinstance(found, UnsharedData):
        loaded = load_source(config.data)
        if fingerprint(loaded) != found.fingerprint:
            raise ValueError(UNEQUAL_DATA)
        known = {name: torch.tensor(labels) for name, labels in found.labels.items()}
        loaded = {**loaded, **{name: LabelledDataset(loaded[name].dataset, labels) for name, labels in known.items()}}
    else:
        loaded = {**found, **{name: _as_tensors(part) for name, part in _parts(found).items()}}
    splits = make_splits(loaded, config.data)
    for examples in (splits.train, splits.validation, splits.test):
        if isinstance(examples, StreamedExamples):
            examples.fetch = fetch
    return splits


def _parts(loaded: Mapping[str, Any]) -> dict[str, Any]:
    return {name: loaded[name] for name in ("train", "validation", "test") if name in loaded}


def _as_arrays(part: Any) -> Any:
    """Returns a pair of inputs and labels as arrays; None for a Dataset, and for types that NumPy does not have."""
    if isinstance(part, BlockSource):
        return part
    if isinstance(part, LabelledDataset):
        return None
    try:
        return tuple(map_tensors(lambda tensor: tensor.detach().cpu().contiguous().numpy(), some) for some in part)
    except TypeError:  # e.g. bfloat16
        return None


def _as_tensors(part: Any) -> Any:
    if isinstance(part, BlockSource):
        return part
    with warnings.catch_warnings():
        # The object store's memory is read-only, which torch cannot represent. Examples are never written.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return tuple(map_tensors(torch.from_numpy, some) for some in part)


def fetch(source: BlockSource, jobs: Iterable[Job], num_readers: int) -> Iterator[Tensor]:
    """Yields the jobs' images in order. Ray Data reads Parquet on the whole cluster; local threads read files."""
    jobs = list(jobs)
    # Ray Data takes seconds to start, which does not pay for a few jobs.
    if isinstance(source, (EncodedParquet, TensorParquet)) and len(jobs) > num_readers:
        return fetch_by_ray_data(source, jobs, num_readers)
    return fetch_by_threads(source, jobs, num_readers)


class _Reader:
    """A Ray Data actor that reads one job at a time."""

    def __init__(self, source: Any) -> None:
        self._source = ray.get(source)
        torch.set_num_threads(1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        seed = int(batch["seed"][0])
        indices = np.frombuffer(batch["indices"][0], dtype=np.int64).tolist()
        images = self._source.read(indices, None if seed < 0 else seed)
        # One row holds the whole block, so that each result belongs to one job.
        return {"images": images.numpy()[None]}


def fetch_by_ray_data(source: BlockSource, jobs: Iterable[Job], num_readers: int) -> Iterator[Tensor]:
    """Yields the jobs' images from Ray Data actors. They request no CPUs, because waiting workers may hold all CPUs."""
    import ray.data

    rows = [
        {"indices": np.asarray(job.indices, dtype=np.int64).tobytes(), "seed": -1 if job.seed is None else job.seed}
        for job in jobs
    ]
    if not rows:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Reader,
        fn_constructor_args=(ray.put(source),),
        batch_size=1,
        num_cpus=0,
        compute=ray.data.ActorPoolStrategy(size=min(num_readers, len(rows))),
    )
    for batch in stream.iter_batches(batch_size=1, prefetch_batches=1):
        yield torch.from_numpy(np.array(batch["images"][0]))
