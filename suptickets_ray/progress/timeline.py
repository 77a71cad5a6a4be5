"""The timeline of a run: when each phase, cycle and merge began and ended, over all starts of the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from suptickets_ray.progress.events import EpochEnded, Event, PhaseStarted, TicketFinished, TicketMerged, to_record
from suptickets_ray.tickets.run_folder import TIMELINE_FILE
from suptickets_ray.tickets.store import RunStore

_SAVE_SECONDS = 10.0
_SPAN_FIELDS = ("chain", "cycle", "node", "process", "accepted", "validation_accuracy", "began", "ended")
_SPANS: dict[type[Event], str] = {TicketFinished: "cycle", TicketMerged: "merge"}
"""Events that describe a finished span, with the kind of the span."""


class Timeline:
    """Collects spans from a run's events. If a start is killed, spans that are not yet saved are lost (seconds)."""

    def __init__(
        self, store: RunStore, recipe: str, began: float | None = None, now: Callable[[], float] = time.time
    ) -> None:
        """Continues the timeline of earlier starts of the run. Before its first phase, a start is "starting".

        Args:
            store: The run's files.
            recipe: The digest of the run's recipe. A timeline of another recipe is discarded.
            began: When this start began, in seconds since 1970. None is now.
            now: Returns the present time in seconds since 1970.
        """
        self._store, self._recipe, self._now = store, recipe, now
        self._starts: list[dict[str, float]] = []
        self._spans: list[dict[str, Any]] = []
        if store.exists(TIMELINE_FILE):
            with suppress(ValueError, KeyError, TypeError):  # a damaged timeline is dropped: it is only displayed
                earlier = json.loads(store.read(TIMELINE_FILE))
                if earlier["config_digest"] == recipe:
                    self._starts, self._spans = list(earlier["starts"]), list(earlier["spans"])
        began = now() if began is None else began
        self._phase: dict[str, Any] | None = {"kind": "starting", "began": began}
        self._epoch: dict[str, Any] | None = None
        self._saved = now()
        self._starts.append({"began": began, "ended": now()})

    def record(self, event: Event) -> None:
        """Records an event of the run. Saves every 10 seconds."""
        values = to_record(event)
        if type(event) in _SPANS and "ended" in values:
            kept = {key: values[key] for key in _SPAN_FIELDS if key in values}
            self._spans.append(self._span(kind=_SPANS[type(event)], **kept))
        elif isinstance(event, EpochEnded):
            self._epoch = {"ended": self._now(), **{key: value for key, value in values.items() if key != "event"}}
        elif isinstance(event, PhaseStarted):
            self._end_phase()
            self._phase = {"kind": event.name, "began": self._now()}
        if self._now() - self._saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the file. Storage errors are ignored here, because the run itself reports them."""
        self._saved = self._starts[-1]["ended"] = self._now()
        content: dict[str, Any] = {
            "config_digest": self._recipe,
            "starts": self._starts,
            "spans": [*self._spans, *self._open_phase()],
        }
        if self._epoch is not None:
            content["epoch"] = self._epoch
        with suppress(OSError):
            self._store.write(TIMELINE_FILE, json.dumps(content).encode())

    def close(self) -> None:
        """Ends the current phase and writes the file."""
        self._end_phase()
        self.save()

    def _end_phase(self) -> None:
        self._spans += self._open_phase()
        self._phase = None

    def _open_phase(self) -> list[dict[str, Any]]:
        """Returns the current phase as a span that ends now, so that a killed start keeps it up to its last save."""
        return [] if self._phase is None else [self._span(**self._phase, ended=self._now())]

    def _span(self, **values: Any) -> dict[str, Any]:
        return {**values, "start": len(self._starts) - 1}
