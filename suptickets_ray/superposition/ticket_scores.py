"""Scores of networks on validation and test, each network evaluated once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data import Splits
from suptickets_ray.training.evaluation import Measured, measure_predictions
from suptickets_ray.training.task import Task

EVALUATED_SPLITS = ("validation", "test")
MeasuredSplits = Mapping[str, Measured]
"""What was measured of a network on each of `EVALUATED_SPLITS`."""


class TicketScores:
    """Scores of all tickets, and the sum of their predictions. Memory does not grow with their predictions."""

    def __init__(self, splits: Splits, task: Task) -> None:
        """Holds no ticket yet.

        Args:
            splits: The data.
            task: The task of the recipe.
        """
        self._splits, self._task = splits, task
        self._scores: dict[tuple[int, int], dict[str, float]] = {}
        self._values: dict[tuple[int, int], Tensor] = {}
        """The metric's value of each test example, by ticket."""
        self._predictions: dict[str, Tensor] = {}
        self._num_finite = 0

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._scores

    @property
    def num_diverged(self) -> int:
        """Number of tickets that hold NaN or infinity. The ensemble is without them."""
        return len(self._scores) - self._num_finite

    def add(self, key: tuple[int, int], ticket: Ticket, measured: MeasuredSplits) -> None:
        """Adds a ticket. The order of the calls decides the last bits of the ensemble's predictions.

        Args:
            key: The ticket's (chain, cycle).
            ticket: The ticket.
            measured: What was measured of it, with predictions.
        """
        self._scores[key] = scores_of(measured)
        self._values[key] = measured["test"].values[self._task.metric.name]
        if ticket.is_finite:
            self._num_finite += 1
            for split in EVALUATED_SPLITS:
                predictions = measured[split].predictions
                assert predictions is not None
                self._predictions[split] = self._predictions.get(split, torch.zeros(())) + predictions

    def validation_score(self, key: tuple[int, int]) -> float:
        """Returns the metric of a ticket on validation."""
        return self._scores[key][f"validation_{self._task.metric.name}"]

    def row(self, key: tuple[int, int], own: Tensor) -> dict[str, Any]:
        """Returns a ticket's scores on both splits, compared with a network.

        Args:
            key: The ticket's (chain, cycle).
            own: The metric's value of each test example for the network, (n,).
        """
        return self._scores[key] | compared(own, self._values[key])

    def mean_ticket(self, own: Tensor) -> dict[str, Any]:
        """Returns the standard error of a network's gain over the tickets' mean; {} without tickets."""
        if not self._values:
            return {}
        total = torch.zeros((), dtype=torch.float64)
        for values in self._values.values():
            total = total + values.double()
        error = {"gain_error": standard_error(own.double() - total / len(self._values))}
        return error if own.dtype == torch.bool else error | {"num_examples": len(own)}

    def ensemble(self, own: Tensor) -> dict[str, Any]:
        """Returns the scores of the mean prediction of all finite tickets, as `row` does; {} if there is none."""
        found: dict[str, Any] = {}
        for split, total in self._predictions.items():
            targets = getattr(self._splits, split).all_labels()
            measured = measure_predictions(total / self._num_finite, targets, self._task)
            found |= prefixed(measured.scores, split)
            if split == "test":
                found |= compared(own, measured.values[self._task.metric.name])
        return found


def scores_of(measured: MeasuredSplits) -> dict[str, float]:
    """Returns metrics and loss of a network on both splits."""
    found: dict[str, float] = {}
    for split in EVALUATED_SPLITS:
        found |= prefixed(measured[split].scores, split)
    return found


def compared(own: Tensor, other: Tensor) -> dict[str, Any]:
    """Returns the error of a gain from values of each test example; if bool, also how many only one has right."""
    error = {"gain_error": standard_error(own.double() - other.double())}
    if own.dtype == other.dtype == torch.bool:
        return error | {"only_one_right": [int((own & ~other).sum()), int((other & ~own).sum())]}
    return error | {"num_examples": len(own)}


def standard_error(differences: Tensor) -> float:
    """Returns the standard error of the mean; NaN for a single example."""
    return float(differences.std() / math.sqrt(len(differences))) if len(differences) > 1 else math.nan


def prefixed(scores: Mapping[str, float], split: str) -> dict[str, float]:
    """Returns the scores with a prefix for validation, and with plain names for test."""
    return dict(scores) if split == "test" else {f"{split}_{key}": value for key, value in scores.items()}
