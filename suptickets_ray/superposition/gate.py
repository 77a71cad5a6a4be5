"""The gate decides which tickets join the average. Tickets outside the basin ruin it."""

from __future__ import annotations


class Gate:
    """Admits a merged network if its validation accuracy is below the best so far by at most the tolerance.

    Source: Sup-tickets, 2205.15322, section 5 (tickets of 76 % whose mean has 10 %); the rule is ours.
    """

    def __init__(self, tolerance: float | None, accuracy: float) -> None:
        """Starts from the pretrained network.

        Args:
            tolerance: Accuracy that may be lost, a fraction; None admits all.
            accuracy: Validation accuracy of the pretrained network.
        """
        self._tolerance = tolerance
        self._best = accuracy

    @property
    def admits_all(self) -> bool:
        """Whether every ticket is admitted, whatever its accuracy."""
        return self._tolerance is None

    def admit(self, accuracy: float) -> bool:
        """Returns whether the merged network with this validation accuracy replaces the previous one."""
        admitted = self._tolerance is None or accuracy >= self._best - self._tolerance - 1e-12
        if admitted:
            self._best = max(self._best, accuracy)
        return admitted
