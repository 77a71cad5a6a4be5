"""Logs a run's events to Weights & Biases through its own client."""

from __future__ import annotations

from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.progress.events import Event
from suptickets_ray.progress.logged_metrics import MetricStream
from suptickets_ray.recipes.load import config_digest, to_dict

_AXES = ("pretraining", "tickets", "superposition")


class WandbLogger:
    """Logs to the project WANDB_PROJECT, or "suptickets". A later start of the run continues its curves.

    The client reads its usual environment, e.g. WANDB_MODE=offline and WANDB_DIR.
    """

    def __init__(self, config: Config) -> None:
        """Starts or resumes the run of a recipe.

        Args:
            config: The recipe.

        Raises:
            ValueError: If the package wandb is missing.
        """
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "run.callbacks 'wandb' must have the package wandb; it is missing. Run: pip install "
                "'suptickets-ray[wandb]'."
            ) from error
        self._run: Any = wandb.init(
            project=None if wandb.Settings().project else "suptickets",
            name=config.name,
            id=f"{config.name}-{config_digest(config)[:12]}",
            resume="allow",
            config=to_dict(config),
        )
        self._stream = MetricStream()
        for axis in _AXES:
            self._run.define_metric(f"{axis}/step")
            self._run.define_metric(f"{axis}/*", step_metric=f"{axis}/step")

    def __call__(self, event: Event) -> None:
        """Logs the numbers of an event."""
        if (found := self._stream.read(event)) is None:
            return
        step, values = found
        section = next(iter(values)).partition("/")[0]
        if section == "test":
            self._run.summary.update(values)
        else:
            self._run.log({**values, f"{section}/step": step})

    def close(self) -> None:
        """Ends the run's connection."""
        self._run.finish()
