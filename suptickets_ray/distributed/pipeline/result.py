"""What a run leaves as `result.json`."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from suptickets_ray import __version__
from suptickets_ray.config import Config
from suptickets_ray.recipes.load import config_digest, differing_keys, from_yaml, to_dict
from suptickets_ray.superposition.assessment import summarize_tickets
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.training.data import load_source
from suptickets_ray.training.data.fingerprint import DATA_FILE, check_data, fingerprint


@dataclass(frozen=True)
class RunResult:
    """A finished run or search."""

    path: str
    """Absolute path of its folder."""
    result: dict[str, Any]
    """What `result.json` holds."""
    resumed: bool
    """Whether nothing was left to do."""


class Clock:
    """Seconds of each phase of this start of the run, the first of which is "start": until Ray runs."""

    def __init__(self) -> None:
        self.began = time.time()
        """When this start began, in seconds since 1970."""
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


def stored_result(
    path: str, config: Config, what: str, also: Callable[[Config], list[str]] = lambda old: []
) -> dict[str, Any] | None:
    """Returns what `result.json` holds if the work in a folder is done, None if it was interrupted or never started.

    Args:
        path: The folder.
        config: The recipe that it must be of.
        what: "run" or "search", for the sentence.
        also: Gives what else differs, from the folder's recipe.

    Raises:
        ValueError: If the folder holds something else; the sentence names the keys that differ. Also if the work is
            done, and was done on other data than those at another `data.root`.
    """
    store = RunStore(path)
    if not store.exists("config.yaml"):
        return None
    try:
        old = from_yaml(store.read("config.yaml").decode())
    except ValueError as error:
        raise ValueError(f"{path}/config.yaml must be the recipe of a {what}; {error} Choose another name=.") from error
    if keys := [*differing_keys(old, config), *also(old)]:
        raise ValueError(
            f"the configuration must be that of the {what} in {path}; these keys differ: {', '.join(keys)}. "
            f"Choose another name=, or set them back to go on with that {what}."
        )
    if not store.exists("result.json"):
        return None
    result = _read_result(store)
    if result is None:
        return None  # cut off or damaged: it is made again from what is stored
    if result.get("config_digest") not in (config_digest(old), config_digest(config)):
        raise ValueError(
            f"{path}/result.json must be that of the {what} in its folder; it belongs to another recipe. Remove it, "
            "and the same command makes it again."
        )
    if old.data.root != config.data.root and store.exists(DATA_FILE):
        check_data(store, fingerprint(load_source(config.data)))
    return result


def _read_result(store: RunStore) -> dict[str, Any] | None:
    try:
        result = json.loads(store.read("result.json"))
    except (ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) else None


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
    judged = summarize_tickets(report)
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
