"""Scores of networks on validation and test, each network evaluated once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.evaluation import score, score_probabilities

EVALUATED_SPLITS = ("validation", "test")
Logits = Mapping[str, Tensor]
"""Logits (n, num_classes) of a network for the examples of each of `EVALUATED_SPLITS`."""


class TicketScores:
    """Scores of all tickets, and the sum of their predictions. It holds no logits: memory does not grow with them."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits
        self._scores: dict[tuple[int, int], dict[str, float]] = {}
        self._right: dict[tuple[int, int], Tensor] = {}
        self._probabilities: dict[str, Tensor] = {}
        self._num_finite = 0

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._scores

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def num_diverged(self) -> int:
        """Number of tickets that hold NaN or infinity. The ensemble is without them."""
        return len(self._scores) - self._num_finite

    def add(self, key: tuple[int, int], ticket: Ticket, logits: Logits) -> None:
        """Adds a ticket. The order of the calls decides the last bits of the ensemble's predictions.

        Args:
            key: The ticket's (chain, cycle).
            ticket: The ticket.
            logits: Its logits.
        """
        scores: dict[str, float] = {}
        for split in EVALUATED_SPLITS:
            examples: Examples = getattr(self._splits, split)
            scores |= prefixed(score(logits[split], examples.all_labels()), split)
            if ticket.is_finite:
                total = self._probabilities.get(split, torch.zeros(()))
                self._probabilities[split] = total + logits[split].softmax(1)
        self._num_finite += ticket.is_finite
        self._right[key] = classified(logits["test"], self._splits.test).bool()
        self._scores[key] = scores

    def accuracy(self, key: tuple[int, int]) -> float:
        """Returns a ticket's validation accuracy, a fraction."""
        return self._scores[key]["validation_accuracy"]

    def row(self, key: tuple[int, int], right: Tensor) -> dict[str, Any]:
        """Returns a ticket's scores on both splits, compared with a network.

        Args:
            key: The ticket's (chain, cycle).
            right: Result of `classified` for the network on test.
        """
        return self._scores[key] | compared(right, self._right[key].double())

    def mean_ticket(self, right: Tensor) -> dict[str, Any]:
        """Returns the standard error of a network's gain over the tickets' mean; {} without tickets."""
        if not self._right:
            return {}
        total = torch.zeros(())
        for own in self._right.values():
            total = total + own.double()
        return {"gain_error": standard_error(right - total / len(self._right))}

    def ensemble(self, right: Tensor) -> dict[str, Any]:
        """Returns the scores of the mean prediction of all finite tickets, as `row` does; {} if there is none."""
        found: dict[str, Any] = {}
        for split, total in self._probabilities.items():
            examples: Examples = getattr(self._splits, split)
            found |= prefixed(score_probabilities(total / self._num_finite, examples.all_labels()), split)
            if split == "test":
                found |= compared(right, classified(total, examples))
        return found


def scores_of(logits: Logits, splits: Splits) -> dict[str, float]:
    """Returns accuracy and loss of a network on both splits."""
    found: dict[str, float] = {}
    for split in EVALUATED_SPLITS:
        found |= prefixed(score(logits[split], getattr(splits, split).all_labels()), split)
    return found


def classified(scores: Tensor, examples: Examples) -> Tensor:
    """Returns whether each example is classified correctly, as 0 or 1, float64 (n,)."""
    return scores.argmax(1).eq(examples.all_labels()).double()


def compared(right: Tensor, other: Tensor) -> dict[str, Any]:
    """Returns the error of a gain and the discordant counts of two networks, from results of `classified`."""
    only_one_right = [int((right > other).sum()), int((other > right).sum())]
    return {"gain_error": standard_error(right - other), "only_one_right": only_one_right}


def standard_error(differences: Tensor) -> float:
    """Returns the standard error of the mean; NaN for a single example."""
    return float(differences.std() / math.sqrt(len(differences))) if len(differences) > 1 else math.nan


def prefixed(scores: Mapping[str, float], split: str) -> dict[str, float]:
    """Returns the scores with a prefix for validation, and with plain names for test."""
    return dict(scores) if split == "test" else {f"{split}_{key}": value for key, value in scores.items()}
