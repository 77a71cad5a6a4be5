"""When each phase, cycle and fold of a run began and ended, over all starts of the run."""

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
_SPANS = {"ticket": "cycle", "fold": "fold"}
"""Kinds of events that end a span of their own, with its name."""
_PHASES = ("pretrain", "superpose")
"""Phases that are spans; exploring shows in its cycles."""


class Timeline:
    """Gathers spans from a run's events. What a killed start had not saved yet is lost: some seconds of a picture."""

    def __init__(self, store: RunStore, now: Callable[[], float] = time.time) -> None:
        """Takes over what earlier starts of the run have left.

        Args:
            store: The run's files.
            now: Gives the time, in seconds since 1970.
        """
        self._store, self._now = store, now
        self._starts: list[dict[str, float]] = []
        self._spans: list[dict[str, Any]] = []
        if store.exists(TIMELINE_FILE):
            with suppress(ValueError, KeyError, TypeError):  # damaged; it only shows
                earlier = json.loads(store.read(TIMELINE_FILE))
                self._starts, self._spans = list(earlier["starts"]), list(earlier["spans"])
        self._phase: dict[str, Any] | None = None
        self._saved = now()
        self._starts.append({"began": now(), "ended": now()})

    def note(self, event: dict[str, Any]) -> None:
        """Takes note of an event of `train`, and saves from time to time."""
        if (kind := _SPANS.get(event["kind"])) and "ended" in event:
            self._add(kind, {key: event[key] for key in _KEPT if key in event})
        elif event["kind"] == "phase":
            self._end_phase()
            if event["name"] in _PHASES:
                self._phase = {"kind": event["name"], "began": self._now()}
        if self._now() - self._saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the file. A storage that cannot be written is passed over: the run itself will say so."""
        self._saved = self._starts[-1]["ended"] = self._now()
        content = {"starts": self._starts, "spans": self._spans}
        with suppress(OSError):
            self._store.write(TIMELINE_FILE, json.dumps(content).encode())

    def close(self) -> None:
        """Ends the phase that is under way, and writes the file."""
        self._end_phase()
        self.save()

    def _end_phase(self) -> None:
        if self._phase is not None:
            began, kind = self._phase["began"], self._phase["kind"]
            self._add(kind, {"began": began, "ended": self._now()})
            self._phase = None

    def _add(self, kind: str, values: dict[str, Any]) -> None:
        self._spans.append({"kind": kind, **values, "start": len(self._starts) - 1})
