"""A run's events in Python's own logging: one record each, with run, phase, chain and cycle."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any

LOGGER = logging.getLogger("suptickets_ray")
LOGGER.addHandler(logging.NullHandler())  # nothing is written unless the user configures it
_LEVELS = {"warning": logging.WARNING, "epoch": logging.DEBUG, "cycle_epoch": logging.DEBUG}
"""Events that come often are for those who ask for DEBUG; all others are INFO."""


class EventLog:
    """Logs the events of one run or search under the name `suptickets_ray`; what is shown is the user's to configure.

    Every record has the attributes `run`, `phase`, `kind` and `values`.
    """

    def __init__(self, run: str) -> None:
        """Names the run."""
        self._run, self._phase = run, "start"

    def __call__(self, event: dict[str, Any]) -> None:
        """Logs an event of `train` or `tune`."""
        kind = event["kind"]
        if kind == "phase":
            self._phase = event["name"]
        values = {key: value for key, value in event.items() if key != "kind"}
        extra = {"run": self._run, "phase": self._phase, "kind": kind, "values": values}
        words = " ".join(f"{key}={_short(value)}" for key, value in values.items())
        LOGGER.log(_LEVELS.get(kind, logging.INFO), "%s %s %s %s", self._run, self._phase, kind, words, extra=extra)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, run, phase, event, and the event's own values."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record's line; one that is no event has a message instead of values."""
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
    """Sends all of the package's records to a stream as JSON lines, and nowhere else."""
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
    """JSON knows no NaN, such as the loss of a chain that diverged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
