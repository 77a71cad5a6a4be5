"""Scalars for TensorBoard: one folder for phase one, each chain and the fold, on one axis of optimizer steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


def write_hparams(tree: str, trials: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Writes the HParams page of a search: a session for each trial.

    Args:
        tree: Absolute path of the search's tree.
        trials: For each its `name`, its `values` by key, and those of the metrics that it has.
        metrics: Names of the metrics.
    """
    for trial in trials:
        values = {key: _plain(value) for key, value in trial["values"].items()}
        found = {metric: trial[metric] for metric in metrics if trial.get(metric) is not None}
        with SummaryWriter(str(Path(tree) / trial["name"])) as writer:
            for summary in hparams(values, dict.fromkeys(metrics, 0.0)):
                writer.file_writer.add_summary(summary)
            for metric, number in found.items():
                writer.add_scalar(metric, number)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


class Scalars:
    """Writes scalars to one folder of a `tensorboard` tree."""

    def __init__(self, tree: str, name: str, first_step: int | None = None) -> None:
        """Opens the folder.

        Args:
            tree: Absolute path of the tree, which is a run's or a search's.
            name: "phase-one", "chain-000" or "superposition".
            first_step: Points of an earlier, interrupted try at or after this step are hidden. TensorBoard reads files
                in the order of their names, which hold whole seconds: give it only where there was such a try.
        """
        self._writer = SummaryWriter(str(Path(tree) / name), purge_step=first_step, flush_secs=5)

    def write(self, step: int, **values: float) -> None:
        """Adds one point per value; `train__loss=` becomes the tag train/loss."""
        for tag, value in values.items():
            self._writer.add_scalar(tag.replace("__", "/"), value, step)

    def close(self) -> None:
        """Writes what is still held back."""
        self._writer.close()

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
