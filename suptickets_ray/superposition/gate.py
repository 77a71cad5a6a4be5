"""The gate: which tickets may join the average. Tickets out of the basin ruin it."""

from __future__ import annotations


class Gate:
    """Admits a merged network when it costs no more validation accuracy than the tolerance, against the best so far.

    Source: Sup-tickets, 2205.15322, section 5 (tickets of 76 % whose mean has 10 %); the rule is ours.
    """

    def __init__(self, tolerance: float | None, accuracy: float) -> None:
        """Starts from the pretrained network.

        Args:
            tolerance: Share of 1 that may be lost; None admits all.
            accuracy: Validation accuracy of the pretrained network.
        """
        self._tolerance = tolerance
        self._best = accuracy

    @property
    def admits_all(self) -> bool:
        """Whether no accuracy keeps a ticket out."""
        return self._tolerance is None

    def admit(self, accuracy: float) -> bool:
        """Returns whether the merged network of this validation accuracy replaces the one before it."""
        admitted = self._tolerance is None or accuracy >= self._best - self._tolerance - 1e-12
        if admitted:
            self._best = max(self._best, accuracy)
        return admitted
