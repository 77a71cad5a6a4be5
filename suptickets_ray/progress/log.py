"""Logs a run's events with Python's logging module: one record per event, with run, phase, chain and cycle."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any

from suptickets_ray.progress.events import CycleEpochEnded, EpochEnded, Event, PhaseStarted, Warned, to_record

LOGGER = logging.getLogger("suptickets_ray")
LOGGER.addHandler(logging.NullHandler())  # no output unless the user configures logging
_LEVELS: dict[type[Event], int] = {
    Warned: logging.WARNING,
    EpochEnded: logging.DEBUG,
    CycleEpochEnded: logging.DEBUG,
}
"""Levels of events. Frequent ones are DEBUG; classes that are not listed are INFO."""


class EventLog:
    """Logs the events of one run or search to the logger `suptickets_ray`, whose output the user configures.

    Every record has the attributes `run`, `phase`, `kind` and `values`.
    """

    def __init__(self, run: str) -> None:
        """Creates the log of a run.

        Args:
            run: Name of the run or search.
        """
        self._run, self._phase = run, "start"

    def __call__(self, event: Event) -> None:
        """Logs an event."""
        if isinstance(event, PhaseStarted):
            self._phase = event.name
        values = to_record(event)
        kind = values.pop("event")
        extra = {"run": self._run, "phase": self._phase, "kind": kind, "values": values}
        text = " ".join(f"{key}={_short(value)}" for key, value in values.items())
        level = _LEVELS.get(type(event), logging.INFO)
        LOGGER.log(level, "%s %s %s %s", self._run, self._phase, kind, text, extra=extra)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object per line: time (ISO 8601, UTC), level, run, phase, event and its values."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record's line. A record of another source has logger and message instead of event values."""
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if hasattr(record, "values"):
            fields = vars(record)
            found |= {"run": fields["run"], "phase": fields["phase"], "event": fields["kind"], **fields["values"]}
        else:
            found |= {"logger": record.name, "message": record.getMessage()}
        return json.dumps({key: _finite(value) for key, value in found.items()}, default=str)


@contextmanager
def json_logs(stream: IO[str]) -> Iterator[None]:
    """Writes all records of the package only to a stream, as JSON lines.

    Args:
        stream: Where to write.
    """
    before = LOGGER.level, LOGGER.propagate
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """Returns the value, or None for NaN and infinity: JSON has no NaN, such as the loss of a diverged chain."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
