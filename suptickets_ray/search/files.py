"""The files of a search: pretrained networks and tickets shared by its trials, and the trials' scores."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.search.keys import exploration_key, pretraining_key
from suptickets_ray.search.points import Point, point_key
from suptickets_ray.tickets.run_folder import (
    DIVERGED_FILE,
    EXPLORATIONS_FOLDER,
    POINTS_FOLDER,
    PRETRAINED_FILE,
    PRETRAININGS_FOLDER,
    SEARCH_FILE,
    SEARCH_FOLDERS,
    TENSORBOARD_FOLDER,
)
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.tickets.ticket_store import TicketStore


def holds_search(store: RunStore) -> bool:
    """Returns whether a folder contains a search, finished or not."""
    return store.exists(SEARCH_FILE) or any(store.list(folder) for folder in SEARCH_FOLDERS)


class SearchFiles:
    """The folder of one search.

    Trials with equal keys share pretraining/<key>/pretrained.pt and explorations/<key>/tickets/. The folder
    points/<point>/ contains the scores and the sup-ticket of each seed. All trials share tensorboard/.
    """

    def __init__(self, path: str, config: Config | None = None) -> None:
        """Opens the folder; see `RunStore`.

        Args:
            path: The folder.
            config: The recipe that points modify. Only rows of this recipe are read then. None is for reading only, and
                reads the rows of all recipes.
        """
        self.path, self.store = path, RunStore(path)
        self.tensorboard = child(path, TENSORBOARD_FOLDER)
        self._recipe = None if config is None else config_digest(config)

    def begin(self) -> None:
        """Marks the folder as a search. Must be called before any other file is written."""
        if not self.store.exists(SEARCH_FILE):
            self._write_counts({"pretraining": self.num_pretrainings(), "cycle": self.num_cycles()})

    def pretrained_path(self, config: Config) -> str:
        """Returns the folder of a recipe's pretraining."""
        return child(self.path, PRETRAININGS_FOLDER, pretraining_key(config))

    def exploration_path(self, config: Config) -> str:
        """Returns the folder of a recipe's tickets."""
        return child(self.path, EXPLORATIONS_FOLDER, exploration_key(config))

    def pretrained_state(self, config: Config) -> bytes:
        """Returns the final state of a recipe's pretraining.

        Raises:
            FileNotFoundError: If pretraining is not finished.
            RuntimeError: If pretraining has diverged.
        """
        own = RecordedRun(self.pretrained_path(config))
        if own.store.exists(DIVERGED_FILE) and not own.is_pretrained:
            raise RuntimeError(own.store.read(DIVERGED_FILE).decode())
        return own.pretrained_state()

    def count(self, what: str) -> None:
        """Counts one trained "pretraining" or "cycle", repeated ones too. Only one process may call this."""
        counts = self._counts()
        self._write_counts({**counts, what: counts.get(what, 0) + 1})

    def num_pretrainings(self) -> int:
        """Returns the number of pretrainings that this start and earlier starts trained."""
        return max(
            self._counts().get("pretraining", 0),
            # A killed driver may not have counted its last pretrainings.
            sum(path.endswith(PRETRAINED_FILE) for path in self.store.list(PRETRAININGS_FOLDER)),
        )

    def num_cycles(self) -> int:
        """Returns the number of cycles that this start and earlier starts completed."""
        keys = {path.split("/")[1] for path in self.store.list(EXPLORATIONS_FOLDER)}
        stored = sum(len(TicketStore(RunStore(child(self.path, EXPLORATIONS_FOLDER, key))).list()) for key in keys)
        return max(self._counts().get("cycle", 0), stored)

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = json.loads(self.store.read(SEARCH_FILE)) if self.store.exists(SEARCH_FILE) else {}
        return counts

    def _write_counts(self, counts: dict[str, int]) -> None:
        self.store.write(SEARCH_FILE, json.dumps(counts).encode())

    def row(self, point: Point, number: int) -> dict[str, Any] | None:
        """Returns the row that `write_row` stored, or None. The score of a diverged network is NaN."""
        path = f"{self._folder(point)}/seed-{number:03d}.json"
        return self._read_row(path) if self.store.exists(path) else None

    def _read_row(self, path: str) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.store.read(path))
        return row | {key: math.nan for key, value in row.items() if value is None and key.startswith("validation_")}

    def write_row(self, point: Point, number: int, row: dict[str, Any], superposed: Ticket) -> None:
        """Stores the scores and the sup-ticket of a point with one seed. Writes the ticket before the scores."""
        self.store.write(f"{self._folder(point)}/seed-{number:03d}.arrow", superposed.to_bytes())
        path = f"{self._folder(point)}/seed-{number:03d}.json"
        self.store.write(path, json.dumps(row | {"recipe": self._recipe}).encode())

    def write_running(self, point: Point, scores: dict[str, Any]) -> None:
        """Stores the latest scores of a running trial, which the scheduler may stop."""
        self.store.write(f"{self._folder(point)}/running", json.dumps(scores).encode())

    def running(self, point: Point) -> dict[str, Any]:
        """Returns the scores that `write_running` stored last; empty if there are none."""
        path = f"{self._folder(point)}/running"
        scores: dict[str, Any] = json.loads(self.store.read(path)) if self.store.exists(path) else {}
        return scores

    def mark_stopped(self, point: Point) -> None:
        """Records that a scheduler stopped a trial, so that a resumed search does not run it again."""
        self.write_running(point, {**self.running(point), "stopped": True})

    def superposed(self, point: Point, number: int) -> Ticket:
        """Returns the sup-ticket of a point with one seed. Raises FileNotFoundError if it does not exist."""
        return Ticket.from_bytes(self.store.read(f"{self._folder(point)}/seed-{number:03d}.arrow"))

    def points(self) -> list[tuple[Point, list[dict[str, Any]]]]:
        """Returns every point with a result, and its rows in the order of seeds. Points are in order of completion."""
        found: dict[str, tuple[Point, list[dict[str, Any]]]] = {}
        for path in self.store.list(POINTS_FOLDER):
            if not path.endswith(".json"):
                continue
            row = self._read_row(path)
            if self._recipe in (None, row.get("recipe")):
                found.setdefault(path.rpartition("/")[0], (row["point"], []))[1].append(row)
        return sorted(found.values(), key=lambda pair: float(pair[1][-1]["finished"]))

    def _folder(self, point: Point) -> str:
        if self._recipe is None:
            raise RuntimeError("Cannot find a point's files: SearchFiles has no recipe. Pass config=.")
        return f"{POINTS_FOLDER}/{hashlib.sha256(f'{self._recipe} {point_key(point)}'.encode()).hexdigest()[:12]}"
