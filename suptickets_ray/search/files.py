"""Where a search keeps what its trials share and what they found."""

from __future__ import annotations

import json
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.search.keys import exploration_key, phase_one_key
from suptickets_ray.search.space import Point, point_key
from suptickets_ray.tickets.store import PRETRAINED_FILE, RunStore, TicketStore, child
from suptickets_ray.tickets.ticket import Ticket


class SearchFiles:
    """The folder of one search.

    phase_one/<key>/pretrained.pt and explorations/<key>/tickets/ are shared by the trials that depend on the same;
    points/<point>/ holds the scores and the sup-ticket of each seed; tensorboard/ is one tree for all.
    """

    def __init__(self, path: str) -> None:
        """Opens the folder; see `RunStore`."""
        self.path, self.store = path, RunStore(path)
        self.tensorboard = child(path, "tensorboard")

    def phase_one_path(self, config: Config) -> str:
        """Returns where the phase one of a recipe lies."""
        return child(self.path, "phase_one", phase_one_key(config))

    def exploration_path(self, config: Config) -> str:
        """Returns where the tickets of a recipe lie."""
        return child(self.path, "explorations", exploration_key(config))

    def phase_one(self, config: Config) -> bytes:
        """Returns the state that phase one ended in. Raises FileNotFoundError before that."""
        return RunStore(self.phase_one_path(config)).read(PRETRAINED_FILE)

    def num_pretrainings(self) -> int:
        """Returns how many phase ones were trained, by this start and earlier ones."""
        return sum(path.endswith(PRETRAINED_FILE) for path in self.store.list("phase_one"))

    def num_cycles(self) -> int:
        """Returns how many cycles were trained, by this start and earlier ones."""
        keys = {path.split("/")[1] for path in self.store.list("explorations")}
        return sum(len(TicketStore(RunStore(child(self.path, "explorations", key))).list()) for key in keys)

    def row(self, point: Point, number: int) -> dict[str, Any] | None:
        """Returns what `keep` kept, None where there is nothing."""
        path = f"{self._folder(point)}/seed-{number:03d}.json"
        if not self.store.exists(path):
            return None
        row: dict[str, Any] = json.loads(self.store.read(path))
        return row

    def keep(self, point: Point, number: int, row: dict[str, Any], superposed: Ticket) -> None:
        """Keeps the scores and the sup-ticket of a point under one seed; the ticket first."""
        self.store.write(f"{self._folder(point)}/seed-{number:03d}.arrow", superposed.to_bytes())
        self.store.write(f"{self._folder(point)}/seed-{number:03d}.json", json.dumps(row).encode())

    def keep_running(self, point: Point, scores: dict[str, Any]) -> None:
        """Keeps what is known of a trial that has not ended, and may be stopped."""
        self.store.write(f"{self._folder(point)}/running", json.dumps(scores).encode())

    def running(self, point: Point) -> dict[str, Any]:
        """Returns the last of what `keep_running` kept; nothing if there is nothing."""
        path = f"{self._folder(point)}/running"
        scores: dict[str, Any] = json.loads(self.store.read(path)) if self.store.exists(path) else {}
        return scores

    def superposed(self, point: Point, number: int) -> Ticket:
        """Returns the sup-ticket of a point under one seed. Raises FileNotFoundError if there is none."""
        return Ticket.from_bytes(self.store.read(f"{self._folder(point)}/seed-{number:03d}.arrow"))

    def points(self) -> list[tuple[Point, list[dict[str, Any]]]]:
        """Returns every point with a result, and its rows, seed by seed; in the order in which they were finished."""
        found: dict[str, tuple[Point, list[dict[str, Any]]]] = {}
        for path in self.store.list("points"):
            if path.endswith(".json"):
                row = json.loads(self.store.read(path))
                found.setdefault(path.rpartition("/")[0], (row["point"], []))[1].append(row)
        return sorted(found.values(), key=lambda pair: float(pair[1][-1]["finished"]))

    def _folder(self, point: Point) -> str:
        return f"points/{point_key(point)}"
