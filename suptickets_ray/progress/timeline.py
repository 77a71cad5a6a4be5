"""When each phase, cycle and merge of a run began and ended, over all starts of the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from suptickets_ray.tickets.store import RunStore

TIMELINE_FILE = "timeline.json"
_SAVE_SECONDS = 10.0
_KEPT = ("chain", "cycle", "node", "process", "began", "ended")
_SPANS = {"ticket": "cycle", "merge": "merge"}
"""Kinds of events that end a span of their own, with its name."""


class Timeline:
    """Gathers spans from a run's events. What a killed start had not saved yet is lost: some seconds of a picture."""

    def __init__(
        self, store: RunStore, recipe: str, began: float | None = None, now: Callable[[], float] = time.time
    ) -> None:
        """Continues the timeline of earlier starts of the run. Until its first phase a start is "starting".

        Args:
            store: The run's files.
            recipe: The digest of the run's recipe. A timeline of another recipe is not continued.
            began: When this start began, in seconds since 1970; now when left out.
            now: Gives the time.
        """
        self._store, self._recipe, self._now = store, recipe, now
        self._starts: list[dict[str, float]] = []
        self._spans: list[dict[str, Any]] = []
        if store.exists(TIMELINE_FILE):
            with suppress(ValueError, KeyError, TypeError):  # damaged; it only shows
                earlier = json.loads(store.read(TIMELINE_FILE))
                if earlier["config_digest"] == recipe:
                    self._starts, self._spans = list(earlier["starts"]), list(earlier["spans"])
        began = now() if began is None else began
        self._phase: dict[str, Any] | None = {"kind": "starting", "began": began}
        self._saved = now()
        self._starts.append({"began": began, "ended": now()})

    def note(self, event: dict[str, Any]) -> None:
        """Takes note of an event of `train`, and saves from time to time."""
        if (kind := _SPANS.get(event["kind"])) and "ended" in event:
            self._spans.append(self._span(kind=kind, **{key: event[key] for key in _KEPT if key in event}))
        elif event["kind"] == "phase":
            self._end_phase()
            self._phase = {"kind": event["name"], "began": self._now()}
        if self._now() - self._saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the file. A storage that cannot be written is passed over: the run itself will say so."""
        self._saved = self._starts[-1]["ended"] = self._now()
        content = {"config_digest": self._recipe, "starts": self._starts, "spans": [*self._spans, *self._open_phase()]}
        with suppress(OSError):
            self._store.write(TIMELINE_FILE, json.dumps(content).encode())

    def close(self) -> None:
        """Ends the phase that is under way, and writes the file."""
        self._end_phase()
        self.save()

    def _end_phase(self) -> None:
        self._spans += self._open_phase()
        self._phase = None

    def _open_phase(self) -> list[dict[str, Any]]:
        """The phase that is under way, as if it ended now: that is what a killed start leaves of it."""
        return [] if self._phase is None else [self._span(**self._phase, ended=self._now())]

    def _span(self, **values: Any) -> dict[str, Any]:
        return {**values, "start": len(self._starts) - 1}
