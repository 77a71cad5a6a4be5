"""The gate decides which tickets join the average. Tickets outside the basin ruin it."""

from __future__ import annotations

import math

from suptickets_ray.metric import ACCURACY, Metric


class Gate:
    """Admits a merged network if its validation score is worse than the best so far by at most the tolerance.

    Source: Sup-tickets, 2205.15322, section 5 (tickets of 76 % whose mean has 10 %); the rule is ours.
    """

    def __init__(self, tolerance: float | None, score: float, metric: Metric = ACCURACY) -> None:
        """Starts from the pretrained network.

        Args:
            tolerance: Score that may be lost: a difference for a fraction such as the accuracy, and relative to the
                best score for other metrics. None admits all.
            score: Validation score of the pretrained network.
            metric: The task's metric.
        """
        self._tolerance = tolerance
        self._best = score
        self._metric = metric

    @property
    def admits_all(self) -> bool:
        """Whether every ticket is admitted, whatever its score."""
        return self._tolerance is None

    def admit(self, score: float) -> bool:
        """Returns whether the merged network with this validation score replaces the previous one."""
        if self._tolerance is None:
            admitted = True
        else:
            unit = 1.0 if self._metric.is_fraction or math.isinf(self._best) else abs(self._best)
            admitted = self._metric.gain(score, self._best) >= -self._tolerance * unit - 1e-12
        if admitted and self._metric.is_better(score, self._best):
            self._best = score
        return admitted
