"""Scalars for TensorBoard: one folder for phase one, each chain and the fold, on one axis of optimizer steps."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter


class Scalars:
    """Writes scalars to one folder of a run's `tensorboard` tree."""

    def __init__(self, run_path: str, name: str, first_step: int | None = None) -> None:
        """Opens the folder.

        Args:
            run_path: Absolute path of the run's folder.
            name: "phase-one", "chain-000" or "superposition".
            first_step: Points of an earlier, interrupted try at or after this step are hidden. TensorBoard reads files
                in the order of their names, which hold whole seconds: give it only where there was such a try.
        """
        self._writer = SummaryWriter(str(Path(run_path) / "tensorboard" / name), purge_step=first_step, flush_secs=5)

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
