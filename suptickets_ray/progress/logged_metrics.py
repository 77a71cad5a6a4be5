"""The numbers of events, as services for experiments log them: a step, and values by name."""

from __future__ import annotations

import math

from suptickets_ray.progress.events import CycleEpochEnded, EpochEnded, Event, RunFinished, TicketFinished, TicketMerged


class MetricStream:
    """Turns events into steps and values. Epochs of pretraining, tickets and merges are counted separately."""

    def __init__(self) -> None:
        self._tickets = self._merges = 0
        self._epochs: dict[int, int] = {}

    def read(self, event: Event) -> tuple[int, dict[str, float]] | None:
        """Returns the step and the finite values of an event; None if it has none."""
        step, values = 0, {}
        match event:
            case EpochEnded(epoch=step):
                values = {
                    "pretrain/loss": event.loss,
                    f"pretrain/validation_{event.metric.name}": event.validation_score,
                }
            case CycleEpochEnded(chain=chain):
                step = self._epochs[chain] = self._epochs.get(chain, 0) + 1
                values = {f"chain-{chain:03d}/loss": event.loss}
            case TicketFinished():
                step = self._tickets = self._tickets + 1
                values = {f"tickets/validation_{event.metric.name}": event.validation_score}
            case TicketMerged():
                step = self._merges = self._merges + 1
                values = {"superposition/accepted": float(event.accepted)}
                if event.validation_score is not None:
                    values[f"superposition/validation_{event.metric.name}"] = event.validation_score
            case RunFinished():
                values = {f"test/{event.metric.name}": event.score}
                if event.loss is not None:
                    values["test/loss"] = event.loss
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        return (step, finite) if finite else None
