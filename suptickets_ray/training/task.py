"""What a network is trained for: three functions, and the metrics that they measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from suptickets_ray.metric import Metric


def _unchecked(values: Any, num_outputs: int) -> None:
    """Accepts everything."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Three functions and the metrics that they measure. A batch has n examples."""

    loss: Callable[[Any, Tensor], Tensor]
    """Takes a network's outputs of a batch and its targets, and returns the loss, a scalar."""
    predict: Callable[[Any], Tensor]
    """Takes a network's outputs, and returns predictions (n, ...). An ensemble averages them, e.g. probabilities."""
    measure: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
    """Takes predictions and targets, and returns a value of each example (n,) for each metric; bool: right or wrong.

    It may also return "loss" (n,), which otherwise is that of `loss`, and unknown for an ensemble.
    """
    metrics: tuple[Metric, ...]
    """The metrics that `measure` returns. The gate, a search and the report compare the first one."""
    reduction: Literal["mean", "sum"] = "mean"
    """Whether `loss` returns the mean over the examples of a batch, or their sum."""
    check_targets: Callable[[Tensor, int], None] = _unchecked
    """Takes all targets of a split and the number of outputs, and raises ValueError if the targets do not fit."""
    check_outputs: Callable[[Any, int], None] = _unchecked
    """Takes the outputs of some examples and the number of outputs, and raises ValueError if they do not fit."""

    @property
    def metric(self) -> Metric:
        """The metric that networks are compared by."""
        return self.metrics[0]

    def summed_loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Returns the sum of the examples' losses."""
        loss = self.loss(outputs, targets)
        return loss if self.reduction == "sum" else loss * len(targets)


def validation_metrics(task: Task) -> dict[str, Literal["max", "min"]]:
    """Returns what trials of a search are compared by, and which of its extremes is better; the default first."""
    found = {f"validation_{metric.name}": metric.mode for metric in task.metrics}
    return {**found, "validation_loss": "min"}
