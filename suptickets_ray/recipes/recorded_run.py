"""Typed access to the files in the folder of a run or a search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import config_digest, from_yaml, to_yaml
from suptickets_ray.tickets.run_folder import (
    CONFIG_FILE,
    DATA_FILE,
    PRETRAINED_FILE,
    REPORT_FILE,
    RESULT_FILE,
    SUPERPOSED_FILE,
    TIMELINE_FILE,
)
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.tickets.ticket_store import TicketStore
from suptickets_ray.training.checkpoint import ticket_from_state


def pretrained_ticket(config: Config, state: bytes, **provenance: Any) -> Ticket:
    """Returns the pretrained network of a run.

    Args:
        config: The recipe.
        state: The final state of pretraining.
        provenance: Further provenance of the ticket.

    Raises:
        ValueError: If the state is damaged.
    """
    return ticket_from_state(state, {"run": config.name, "config_digest": config_digest(config), **provenance})


class RecordedRun:
    """What a run has recorded in its folder. Recipe, result and timeline are read once, on first use.

    It needs no data set, so that the copy of a folder on another machine can be read.
    """

    def __init__(self, path: str) -> None:
        """Opens a folder, which need not exist yet.

        Args:
            path: Absolute path or URI of the folder.

        Raises:
            ValueError: If the path is relative or its scheme unknown.
        """
        self.path, self.store = path, RunStore(path)
        self.tickets = TicketStore(self.store)

    @property
    def is_begun(self) -> bool:
        """Whether the folder contains a recipe, which a run or search writes first."""
        return self.store.exists(CONFIG_FILE)

    @property
    def is_pretrained(self) -> bool:
        """Whether pretraining is finished."""
        return self.store.exists(PRETRAINED_FILE)

    @property
    def is_superposed(self) -> bool:
        """Whether the sup-ticket exists."""
        return self.store.exists(SUPERPOSED_FILE)

    @property
    def has_report(self) -> bool:
        """Whether the HTML report exists."""
        return self.store.exists(REPORT_FILE)

    @property
    def records_data(self) -> bool:
        """Whether the fingerprint of the data is recorded."""
        return self.store.exists(DATA_FILE)

    @cached_property
    def recipe(self) -> str:
        """The resolved recipe as YAML."""
        return self.store.read(CONFIG_FILE).decode()

    @cached_property
    def config(self) -> Config:
        """The recipe. Raises ValueError if the file is invalid."""
        return from_yaml(self.recipe)

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """The final numbers; None if the work is unfinished. Raises ValueError if the file is damaged."""
        if not self.store.exists(RESULT_FILE):
            return None
        try:
            content = json.loads(self.store.read(RESULT_FILE))
        except RecursionError as error:
            raise ValueError(f"{RESULT_FILE} is nested too deeply") from error
        if not isinstance(content, dict):
            raise ValueError(f"{RESULT_FILE} is no mapping")
        return content

    @cached_property
    def timeline(self) -> dict[str, Any] | None:
        """The timeline; None if it does not exist, {} if it is damaged or of another recipe."""
        if not self.store.exists(TIMELINE_FILE):
            return None
        try:
            content = json.loads(self.store.read(TIMELINE_FILE))
        except ValueError:
            return {}
        is_valid = isinstance(content, dict) and content.get("config_digest") == config_digest(self.config)
        return content if is_valid else {}

    def pretrained_state(self) -> bytes:
        """Returns the final state of pretraining. Raises FileNotFoundError if it does not exist."""
        return self.store.read(PRETRAINED_FILE)

    def pretrained(self) -> Ticket:
        """Returns the pretrained network.

        Raises:
            FileNotFoundError: If it does not exist.
            ValueError: If its file is damaged.
        """
        return pretrained_ticket(self.config, self.pretrained_state())

    def superposed(self) -> Ticket:
        """Returns the sup-ticket.

        Raises:
            FileNotFoundError: If it does not exist.
            ValueError: If its file is damaged.
        """
        return Ticket.from_bytes(self.store.read(SUPERPOSED_FILE))

    def begin(self, config: Config, data: str) -> None:
        """Writes the recipe and the data's fingerprint, which reserves the folder for this run or search."""
        self.store.remove_temporaries()
        self.store.write(CONFIG_FILE, to_yaml(config).encode())
        self.store.write(DATA_FILE, data.encode())

    def write_pretrained_state(self, state: bytes) -> None:
        """Writes the final state of pretraining."""
        self.store.write(PRETRAINED_FILE, state)

    def write_superposed(self, ticket: Ticket) -> None:
        """Writes the sup-ticket."""
        self.store.write(SUPERPOSED_FILE, ticket.to_bytes())

    def write_report(self, page: str) -> None:
        """Writes the HTML report."""
        self.store.write(REPORT_FILE, page.encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes the final numbers, after all networks. A folder that has them is complete, but for its report."""
        self.store.write(RESULT_FILE, json.dumps(result, indent=2).encode())
