"""TensorBoard curves: pretraining and chains over optimizer steps, the superposition over tickets."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import histogram, hparams, scalar

from suptickets_ray.sparse.masks import Tensors
from suptickets_ray.sparse.statistics import layer_table
from suptickets_ray.tickets.store import RunStore

_UPLOAD_SECONDS = 20.0
_FLUSH_SECONDS = 5.0
_BINS = np.linspace(0, 1, 101)
"""Bin edges of the density histogram."""


def write_hparams(tree: str, trials: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Writes the HParams page of a search: a session for each trial.

    Args:
        tree: Absolute path of the search's tree.
        trials: For each trial its `name`, its `values` by key, and the metrics that it has.
        metrics: Names of the metrics.
    """
    for trial in trials:
        values = {key: _plain(value) for key, value in trial["values"].items()}
        found = {metric: trial[metric] for metric in metrics if trial.get(metric) is not None}
        folder = EventFolder(tree, trial["name"])
        with SummaryWriter(folder.folder) as writer:
            for summary in hparams(values, dict.fromkeys(metrics, 0.0)):
                writer.file_writer.add_summary(summary)
            for metric, number in found.items():
                writer.add_scalar(metric, number)
        folder.close()


def write_summary(
    tree: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    texts: Mapping[str, str],
    images: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the HParams, texts and images of a finished run, as the TensorBoard run "summary".

    Args:
        tree: Absolute path of the run's tree.
        settings: The recipe's settings by dotted key.
        metrics: Final metrics by tag.
        texts: Markdown by tag.
        images: Images by tag, uint8 (height, width, 3).
    """
    write_hparams(tree, [{"name": "summary", "values": settings, **metrics}], list(metrics))
    folder = EventFolder(tree, "summary")
    with SummaryWriter(folder.folder) as writer:
        for tag, text in texts.items():
            writer.add_text(tag, text)
        for tag, image in (images or {}).items():
            writer.add_image(tag, image, dataformats="HWC")
    folder.close()


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


class EventFolder:
    """A folder for TensorBoard's writer. For an object store, it is a local folder whose files are uploaded."""

    def __init__(self, tree: str, name: str) -> None:
        """Chooses the folder; the first writer creates it in a local tree."""
        self._temporary = tempfile.TemporaryDirectory() if "://" in tree else None
        self._store, self._name = RunStore(tree), name
        self.folder = self._temporary.name if self._temporary else str(Path(tree) / name)
        self._uploaded = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last upload is old enough for another one."""
        return self._temporary is not None and time.monotonic() - self._uploaded > _UPLOAD_SECONDS

    def upload(self) -> None:
        """Uploads all event files; they are small."""
        if self._temporary is not None:
            for path in Path(self.folder).iterdir():
                self._store.write(f"{self._name}/{path.name}", path.read_bytes())
            self._uploaded = time.monotonic()

    def close(self) -> None:
        """Uploads all event files a last time, and removes the local folder."""
        self.upload()
        if self._temporary is not None:
            self._temporary.cleanup()


class EventFile:
    """An event file that TensorBoard reads after all older files of the folder.

    TensorBoard reads a folder's files in the order of their names. Names of torch's SummaryWriter start with whole
    seconds, so two short cycles may be read in the wrong order. These names include the nanosecond.
    """

    def __init__(self, folder: str, first_step: int | None = None) -> None:
        """Creates the file.

        Args:
            folder: Local folder; created if missing.
            first_step: Points of earlier files at or after this step are hidden.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        origin = f"{socket.gethostname()}.{os.getpid()}"
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{origin}"
        self._file = (Path(folder) / name).open("xb")
        self._records = RecordWriter(self._file)
        self._flushed = time.monotonic()
        self._add(Event(file_version="brain.Event:2"))
        if first_step is not None:
            self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, summary: Summary, step: int) -> None:
        """Adds a summary at a step. It is buffered until `flush`, `close` or an `add` some seconds later."""
        self._add(Event(step=step, summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered summaries."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class Scalars:
    """Writes scalars to one folder of a `tensorboard` tree."""

    def __init__(self, tree: str, name: str, first_step: int | None = None) -> None:
        """Opens the folder.

        Args:
            tree: Absolute path of the tree, which is a run's or a search's.
            name: "pretraining", "chain-000" or "superposition".
            first_step: Points of an earlier, interrupted attempt at or after this step are hidden.
        """
        self._tree = EventFolder(tree, name)
        self._events = EventFile(self._tree.folder, first_step)

    def write(self, step: int, **values: float) -> None:
        """Adds one point per value, written to disk at once; `train__loss=` becomes the tag train/loss."""
        for tag, value in values.items():
            self._events.add(scalar(tag.replace("__", "/"), value), step)
        self._events.flush()  # points are rare, one per epoch or ticket, and must survive a kill
        if self._tree.is_due():
            self._tree.upload()

    def write_layer_densities(self, step: int, masks: Tensors) -> None:
        """Adds the histogram layers/density: the fraction of active weights of every layer."""
        densities = np.asarray([layer.density for layer in layer_table(masks)])
        self._events.add(histogram("layers/density", densities, _BINS), step)

    def close(self) -> None:
        """Writes the buffered points and closes the folder."""
        self._events.close()
        self._tree.close()

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
