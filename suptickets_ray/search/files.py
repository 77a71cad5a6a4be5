"""Where a search keeps what its trials share and what they found."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.search.keys import exploration_key, pretraining_key
from suptickets_ray.search.space import Point, point_key
from suptickets_ray.tickets.store import PRETRAINED_FILE, RunStore, TicketStore, child
from suptickets_ray.tickets.ticket import Ticket

SEARCH_FILE = "search.json"
"""How often pretraining and cycles were trained; written first of all, so that a folder with it is a search's."""
_MADE_BY_SEARCH = ("pretraining", "explorations", "points")


def holds_search(store: RunStore) -> bool:
    """Returns whether a folder is that of a search, finished or not."""
    return store.exists(SEARCH_FILE) or any(store.list(folder) for folder in _MADE_BY_SEARCH)


DIVERGED_FILE = "diverged"
"""Beside a pretraining that has diverged: the sentence that says so."""


class SearchFiles:
    """The folder of one search.

    pretraining/<key>/pretrained.pt and explorations/<key>/tickets/ are shared by the trials that depend on the same;
    points/<point>/ holds the scores and the sup-ticket of each seed; tensorboard/ is one tree for all.
    """

    def __init__(self, path: str, config: Config | None = None) -> None:
        """Opens the folder; see `RunStore`.

        Args:
            path: The folder.
            config: The recipe that points start from; only its rows are read then, and rows can be kept. Whoever only
                reads can leave it out, and sees the rows of all.
        """
        self.path, self.store = path, RunStore(path)
        self.tensorboard = child(path, "tensorboard")
        self._recipe = None if config is None else config_digest(config)

    def begin(self) -> None:
        """Marks the folder as a search's, before anything else is written to it."""
        if not self.store.exists(SEARCH_FILE):
            self._write_counts({"pretraining": self.num_pretrainings(), "cycle": self.num_cycles()})

    def pretrained_path(self, config: Config) -> str:
        """Returns where the pretraining of a recipe lies."""
        return child(self.path, "pretraining", pretraining_key(config))

    def exploration_path(self, config: Config) -> str:
        """Returns where the tickets of a recipe lie."""
        return child(self.path, "explorations", exploration_key(config))

    def pretrained_state(self, config: Config) -> bytes:
        """Returns the state that pretraining ended in.

        Raises:
            FileNotFoundError: Before that.
            RuntimeError: If it has diverged.
        """
        store = RunStore(self.pretrained_path(config))
        if store.exists(DIVERGED_FILE) and not store.exists(PRETRAINED_FILE):
            raise RuntimeError(store.read(DIVERGED_FILE).decode())
        return store.read(PRETRAINED_FILE)

    def count(self, what: str) -> None:
        """Counts a "pretraining" or "cycle" that was trained, even twice. Only one process may call this."""
        counts = self._counts()
        self._write_counts({**counts, what: counts.get(what, 0) + 1})

    def num_pretrainings(self) -> int:
        """Returns how many pretrainings were trained, by this start and earlier ones."""
        return max(
            self._counts().get("pretraining", 0),
            # Those that a killed driver could not count.
            sum(path.endswith(PRETRAINED_FILE) for path in self.store.list("pretraining")),
        )

    def num_cycles(self) -> int:
        """Returns how many cycles were trained to their end, by this start and earlier ones."""
        keys = {path.split("/")[1] for path in self.store.list("explorations")}
        stored = sum(len(TicketStore(RunStore(child(self.path, "explorations", key))).list()) for key in keys)
        return max(self._counts().get("cycle", 0), stored)

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = json.loads(self.store.read(SEARCH_FILE)) if self.store.exists(SEARCH_FILE) else {}
        return counts

    def _write_counts(self, counts: dict[str, int]) -> None:
        self.store.write(SEARCH_FILE, json.dumps(counts).encode())

    def row(self, point: Point, number: int) -> dict[str, Any] | None:
        """Returns what `keep` kept, None where there is nothing. A score that has diverged is NaN."""
        path = f"{self._folder(point)}/seed-{number:03d}.json"
        return self._read_row(path) if self.store.exists(path) else None

    def _read_row(self, path: str) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.store.read(path))
        return row | {key: math.nan for key, value in row.items() if value is None and key.startswith("validation_")}

    def keep(self, point: Point, number: int, row: dict[str, Any], superposed: Ticket) -> None:
        """Keeps the scores and the sup-ticket of a point under one seed; the ticket first."""
        self.store.write(f"{self._folder(point)}/seed-{number:03d}.arrow", superposed.to_bytes())
        path = f"{self._folder(point)}/seed-{number:03d}.json"
        self.store.write(path, json.dumps(row | {"recipe": self._recipe}).encode())

    def keep_running(self, point: Point, scores: dict[str, Any]) -> None:
        """Keeps what is known of a trial that has not ended, and may be stopped."""
        self.store.write(f"{self._folder(point)}/running", json.dumps(scores).encode())

    def running(self, point: Point) -> dict[str, Any]:
        """Returns the last of what `keep_running` kept; nothing if there is nothing."""
        path = f"{self._folder(point)}/running"
        scores: dict[str, Any] = json.loads(self.store.read(path)) if self.store.exists(path) else {}
        return scores

    def mark_stopped(self, point: Point) -> None:
        """Keeps that a scheduler has stopped a trial: a search that goes on does not run it again."""
        self.keep_running(point, {**self.running(point), "stopped": True})

    def superposed(self, point: Point, number: int) -> Ticket:
        """Returns the sup-ticket of a point under one seed. Raises FileNotFoundError if there is none."""
        return Ticket.from_bytes(self.store.read(f"{self._folder(point)}/seed-{number:03d}.arrow"))

    def points(self) -> list[tuple[Point, list[dict[str, Any]]]]:
        """Returns every point with a result, and its rows, seed by seed; in the order in which they were finished."""
        found: dict[str, tuple[Point, list[dict[str, Any]]]] = {}
        for path in self.store.list("points"):
            if not path.endswith(".json"):
                continue
            row = self._read_row(path)
            if self._recipe in (None, row.get("recipe")):
                found.setdefault(path.rpartition("/")[0], (row["point"], []))[1].append(row)
        return sorted(found.values(), key=lambda pair: float(pair[1][-1]["finished"]))

    def _folder(self, point: Point) -> str:
        if self._recipe is None:
            raise RuntimeError("SearchFiles must know the recipe to tell its points from another's. Give config=.")
        return f"points/{hashlib.sha256(f'{self._recipe} {point_key(point)}'.encode()).hexdigest()[:12]}"
