"""Logs a run's events to MLflow through its own client."""

from __future__ import annotations

from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.progress.events import Event, RunFinished
from suptickets_ray.progress.logged_metrics import MetricStream
from suptickets_ray.recipes.load import config_digest, flatten, to_dict

_LONGEST_VALUE = 500
"""Characters of a parameter that MLflow stores."""
_TAG = "suptickets.config_digest"


class MlflowLogger:
    """Logs to the experiment MLFLOW_EXPERIMENT_NAME, or "suptickets", of the server or folder MLFLOW_TRACKING_URI.

    A later start of the run continues its curves.
    """

    def __init__(self, config: Config) -> None:
        """Starts or resumes the run of a recipe.

        Args:
            config: The recipe.

        Raises:
            ValueError: If the package mlflow is missing.
        """
        try:
            from mlflow import MlflowClient
            from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME
        except ImportError as error:
            raise ValueError(
                "run.callbacks 'mlflow' must have the package mlflow; it is missing. Run: pip install "
                "'suptickets-ray[mlflow]'."
            ) from error
        self._client: Any = MlflowClient()
        name = MLFLOW_EXPERIMENT_NAME.get() or "suptickets"
        experiment = self._client.get_experiment_by_name(name)
        identifier = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        digest = config_digest(config)
        earlier = self._client.search_runs(
            [identifier], f"tags.`{_TAG}` = '{digest}' and attributes.run_name = '{config.name}'"
        )
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
        else:
            self._run = self._client.create_run(identifier, tags={_TAG: digest}, run_name=config.name).info.run_id
            for key, value in flatten(to_dict(config)):
                self._client.log_param(self._run, key, str(value)[:_LONGEST_VALUE])
        self._stream = MetricStream()
        self._status = "KILLED"

    def __call__(self, event: Event) -> None:
        """Logs the numbers of an event."""
        if isinstance(event, RunFinished):
            self._status = "FINISHED"
        if (found := self._stream.read(event)) is not None:
            for name, value in found[1].items():
                self._client.log_metric(self._run, name, value, step=found[0])

    def close(self) -> None:
        """Marks the run as finished, or as killed if it did not end."""
        self._client.set_terminated(self._run, self._status)
