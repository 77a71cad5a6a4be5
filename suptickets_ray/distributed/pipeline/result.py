"""Builds and reads `result.json`."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from suptickets_ray import __version__
from suptickets_ray.config import Config
from suptickets_ray.recipes.load import config_digest, differing_keys, to_dict
from suptickets_ray.recipes.machine import with_recorded
from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.superposition.assessment import summarize_tickets
from suptickets_ray.tickets.run_folder import CONFIG_FILE, RESULT_FILE
from suptickets_ray.training.data import load_source
from suptickets_ray.training.data.fingerprint import check_data, fingerprint


@dataclass(frozen=True)
class RunResult:
    """A finished run or search."""

    path: str
    """Absolute path or URI of its folder."""
    result: dict[str, Any]
    """The content of `result.json`."""
    resumed: bool
    """Whether the work was already done."""


class Clock:
    """Measures the seconds of each phase of this start. The first phase, "start", ends when Ray runs."""

    def __init__(self) -> None:
        self.began = time.time()
        """Time of this start, in seconds since 1970."""
        self._start = self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends the phase `name`. The next phase begins."""
        now = time.monotonic()
        self._seconds[name] = round(now - self._last, 3)
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of every phase, and `total` since the start."""
        return self._seconds | {"total": round(time.monotonic() - self._start, 3)}


def stored_result(
    path: str, config: Config, what: str, find_other_keys: Callable[[Config], list[str]] = lambda old: []
) -> dict[str, Any] | None:
    """Returns the content of `result.json` if the work in a folder is done, None if it is unfinished or not started.

    Args:
        path: The folder.
        config: The recipe of the work.
        what: "run" or "search", for the error text.
        find_other_keys: Called with the folder's recipe. Returns further keys that differ.

    Raises:
        ValueError: If the folder holds the work of another recipe; the text names the keys that differ. Also if the
            work is done, `data.root` has changed, and the data there differ from those of the work.
    """
    files = RecordedRun(path)
    if not files.is_begun:
        return None
    try:
        old = files.config
    except ValueError as error:
        raise ValueError(
            f"Cannot read {path}/{CONFIG_FILE} as the recipe of a {what}: {error} Choose another name=."
        ) from error
    config = with_recorded(config, old)
    if keys := [*differing_keys(old, config), *find_other_keys(old)]:
        raise ValueError(
            f"Cannot continue the {what} in {path}: these keys differ: {', '.join(keys)}. "
            f"Choose another name=, or restore their values to continue that {what}."
        )
    try:
        result = files.result
    except ValueError:
        return None  # truncated or damaged: it is rebuilt from the stored files
    if result is None:
        return None
    if result.get("config_digest") not in (config_digest(old), config_digest(config)):
        raise ValueError(
            f"Cannot use {path}/{RESULT_FILE}: it belongs to another recipe than the {what} in its folder. Remove it; "
            "the same command writes it again."
        )
    if old.data.root != config.data.root and files.records_data:
        check_data(files.store, fingerprint(load_source(config.data)))
    return result


def assemble_result(
    config: Config, report: dict[str, Any], seconds: dict[str, float], warnings: list[str]
) -> dict[str, Any]:
    """Returns the content of `result.json`, with the mean ticket, the best ticket, and important warnings.

    The best ticket is chosen on validation. Phases that an earlier start has finished do not count in `seconds`.

    Args:
        config: The recipe.
        report: Report of the superposer.
        seconds: Seconds of each phase.
        warnings: Warnings of this start.
    """
    summary = summarize_tickets(report)
    return {
        "state": "complete",
        "name": config.name,
        **report,
        **summary,
        "warnings": [*warnings, *summary["warnings"]],
        "seconds": seconds,
        "versions": versions(),
        "config": to_dict(config),
        "config_digest": config_digest(config),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on."""
    return {
        "suptickets_ray": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch", "pyarrow")},
    }


def without_nan(value: Any) -> Any:
    """Returns the value with NaN and infinity as None, e.g. a diverged ticket's loss. JSON cannot represent them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return [without_nan(inner) for inner in value] if isinstance(value, list) else value
