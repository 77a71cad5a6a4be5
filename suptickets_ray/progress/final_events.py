"""The last events of a run or search, made from its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suptickets_ray.metric import Metric
from suptickets_ray.progress.events import ResultWritten, RunFinished


def written_event(path: str, result: Mapping[str, Any], network: str) -> ResultWritten:
    """Returns the event of a written result; the arguments are those of `finished_event`."""
    found, metric = result[network], Metric.of_result(result)
    return ResultWritten(path, found[metric.name], found["digest"], metric)


def finished_event(path: str, result: Mapping[str, Any], network: str) -> RunFinished:
    """Returns the last event of a run or search.

    Args:
        path: Its folder.
        result: Content of its `result.json`.
        network: Key of the result's network, "superposed" or "best".
    """
    found, metric = result[network], Metric.of_result(result)
    return RunFinished(path, found[metric.name], found["loss"], found["digest"], result["warnings"], metric)
