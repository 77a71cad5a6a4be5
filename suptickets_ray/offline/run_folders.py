"""The runs and searches in a storage: their state and size, read from their files without torch or Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pyarrow import fs

from suptickets_ray.recipes.yaml_text import parse_yaml
from suptickets_ray.tickets.run_folder import (
    CONFIG_FILE,
    LOCK_FILE,
    POINTS_FOLDER,
    PRETRAINED_FILE,
    RESULT_FILE,
    SEARCH_FILE,
    TIMELINE_FILE,
)
from suptickets_ray.tickets.schedule import plan_budget
from suptickets_ray.tickets.store import RunStore, child

_READERS = 8
"""Folders that are read at once. An object store answers each request after tens of milliseconds."""


@dataclass(frozen=True)
class RunFolder:
    """What is known about a run or search from its files. None where it is not known."""

    name: str
    path: str
    """Absolute path or URI."""
    is_search: bool
    is_complete: bool
    phase: str
    """What the run does next: "pretraining", "exploring", "superposing" or "searching"; "" if it is complete."""
    accuracy: float | None
    """Accuracy on the test set of the sup-ticket, or of a search's best trial."""
    density: float | None
    tickets: int
    """Finished tickets; of a search, finished trials with one seed each."""
    num_tickets: int | None
    """Tickets of the finished run; None for a search."""
    seconds: float | None
    """Duration of all starts together."""
    size: int
    """Bytes of all files."""
    heartbeat_age: float
    """Seconds since the lock file was written, by this machine's clock."""
    is_pretrained: bool
    recipe: Mapping[str, Any]
    """The recipe as it is stored, not checked; empty if it is damaged."""
    timeline: Mapping[str, Any]
    """The timeline; empty without one."""


def run_folder(name_or_path: str, storage: str) -> str:
    """Returns the path or URI of a run's folder.

    Args:
        name_or_path: A name in the storage, or a path or URI, which contains "/".
        storage: The storage.
    """
    if "/" in name_or_path:
        return name_or_path if "://" in name_or_path else str(Path(name_or_path).expanduser().absolute())
    return child(storage, name_or_path) if "://" in storage else str((Path(storage) / name_or_path).absolute())


def list_run_folders(storage: str) -> list[RunFolder]:
    """Returns every run and search in a storage, sorted by name.

    Args:
        storage: A folder, or a URI.

    Raises:
        ValueError: If the storage cannot be read.
    """
    root = storage if "://" in storage else str(Path(storage).expanduser().absolute())
    store = RunStore(root)
    store.check(writes=False)
    by_name: dict[str, dict[str, fs.FileInfo]] = {}
    for path, info in _files_below(store).items():
        name, _, inner = path.partition("/")
        by_name.setdefault(name, {})[inner] = info
    found = {name: files for name, files in by_name.items() if CONFIG_FILE in files}
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(lambda name: _read(name, child(root, name), found[name]), sorted(found)))


def read_run_folder(path: str) -> RunFolder:
    """Returns one run or search.

    Args:
        path: Absolute path or URI of its folder.

    Raises:
        ValueError: If there is none.
    """
    store = RunStore(path)
    store.check(writes=False)
    files = _files_below(store)
    if CONFIG_FILE not in files:
        raise ValueError(
            f"{path} must be the folder of a run or search; it has no {CONFIG_FILE}. List: suptickets runs"
        )
    return _read(path.partition("?")[0].rstrip("/").rpartition("/")[2], path, files)


def _files_below(store: RunStore) -> dict[str, fs.FileInfo]:
    """Returns all files by their path below the store's folder."""
    filesystem, root = store.location
    try:
        infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        raise ValueError(f"storage must be a folder that can be read; got: {error}.") from error
    prefix = root.rstrip("/") + "/"
    return {info.path.removeprefix(prefix): info for info in infos if info.type == fs.FileType.File}


def _read(name: str, path: str, files: Mapping[str, fs.FileInfo]) -> RunFolder:
    result, timeline = (_json(path, files, file) for file in (RESULT_FILE, TIMELINE_FILE))
    recipe = at(result, "config") or _recipe(path)
    is_search = SEARCH_FILE in files
    tickets = [file for file in files if file.startswith("tickets/") and file.endswith(".arrow")]
    trials = [file for file in files if file.startswith(f"{POINTS_FOLDER}/") and file.endswith(".json")]
    num_tickets = None if is_search else _num_tickets(recipe)
    lock = files.get(LOCK_FILE)
    return RunFolder(
        name=name,
        path=path,
        is_search=is_search,
        is_complete=bool(result),
        phase="" if result else _phase(files, is_search, len(tickets), num_tickets),
        accuracy=at(result, "best" if is_search else "superposed", "accuracy"),
        density=at(recipe, "method", "density"),
        tickets=len(trials if is_search else tickets),
        num_tickets=num_tickets,
        seconds=_seconds(timeline) or at(result, "seconds", "total"),
        size=sum(info.size or 0 for info in files.values()),
        heartbeat_age=time.time() - lock.mtime.timestamp() if lock is not None and lock.mtime else 0.0,
        is_pretrained=PRETRAINED_FILE in files,
        recipe=recipe,
        timeline=timeline,
    )


def _phase(files: Mapping[str, fs.FileInfo], is_search: bool, tickets: int, num_tickets: int | None) -> str:
    if is_search:
        return "searching"
    if PRETRAINED_FILE not in files:
        return "pretraining"
    return "superposing" if num_tickets is not None and tickets >= num_tickets else "exploring"


def _seconds(timeline: Mapping[str, Any]) -> float | None:
    with suppress(KeyError, TypeError):
        return sum(float(start["ended"] - start["began"]) for start in timeline["starts"])
    return None


def at(content: Any, *keys: str) -> Any:
    """Returns a value in nested mappings, or None."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _num_tickets(recipe: Mapping[str, Any]) -> int | None:
    with suppress(KeyError, TypeError, ValueError):  # a damaged recipe, or one of another version
        tickets = recipe["tickets"]
        budget = plan_budget(recipe["train"]["epochs"], tickets["cycle_epochs"], tickets["cycle_rate"])
        return int(tickets["num_chains"]) * budget.cycles
    return None


def _recipe(path: str) -> dict[str, Any]:
    with suppress(OSError, ValueError, yaml.YAMLError):  # listed nevertheless
        recipe = parse_yaml(RunStore(path).read(CONFIG_FILE).decode())
        return recipe if isinstance(recipe, dict) else {}
    return {}


def _json(path: str, files: Mapping[str, fs.FileInfo], name: str) -> dict[str, Any]:
    """Returns a JSON file's mapping; empty if it is missing or damaged."""
    if name not in files:
        return {}
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(RunStore(path).read(name))
        return content if isinstance(content, dict) else {}
    return {}
