"""What a run leaves as `result.json`."""

from __future__ import annotations

import math
import platform
import time
from importlib.metadata import version
from typing import Any

from suptickets_ray import __version__
from suptickets_ray.config import Config
from suptickets_ray.config_io import config_digest, to_dict
from suptickets_ray.reporting.verdict import verdict


class Clock:
    """Seconds of each phase of this start of the run."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a phase."""
        now = time.monotonic()
        self._seconds[name] = round(now - self._last, 3)
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of every phase, and `total`."""
        return self._seconds | {"total": round(time.monotonic() - self._start, 3)}


def assemble_result(
    config: Config, report: dict[str, Any], seconds: dict[str, float], warnings: list[str]
) -> dict[str, Any]:
    """Returns the content of `result.json`, with mean and best ticket, and warnings that nobody should overlook.

    The best ticket is chosen on validation. A phase that an earlier start of the run had finished counts no seconds.

    Args:
        config: The recipe.
        report: What the superposer found.
        seconds: Of each phase.
        warnings: What was noticed on the way.
    """
    judged = verdict(report)
    return {
        "state": "complete",
        "name": config.name,
        **report,
        **judged,
        "warnings": [*warnings, *judged["warnings"]],
        "seconds": seconds,
        "versions": versions(),
        "config": to_dict(config),
        "config_digest": config_digest(config),
    }


def versions() -> dict[str, str]:
    """Returns the versions of what results depend on."""
    return {
        "suptickets_ray": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch", "pyarrow")},
    }


def without_nan(value: Any) -> Any:
    """Returns the value with every number that JSON does not know, such as a diverged ticket's loss, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return [without_nan(inner) for inner in value] if isinstance(value, list) else value
