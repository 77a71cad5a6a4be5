"""Receivers of a run's events: shipped loggers by name, and user-defined classes. A receiver never ends a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.lookup import choose_or_import
from suptickets_ray.progress.events import Event, OnEvent, PhaseStarted, RunFinished, Warned, to_record
from suptickets_ray.progress.mlflow_logger import MlflowLogger
from suptickets_ray.progress.wandb_logger import WandbLogger
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.user_code import call_with

EVENTS_FILE = "events.jsonl"


class JsonLines:
    """Writes every event as a line of JSON to events.jsonl in the run's folder; later starts append to it."""

    def __init__(self, path: str) -> None:
        """Opens the file.

        Args:
            path: Absolute path or URI of the run's folder.
        """
        self._store = RunStore(path) if "://" in path else None
        self._file = Path(child(path, EVENTS_FILE)) if self._store is None else None
        self._lines: list[bytes] = []
        if self._store is not None and self._store.exists(EVENTS_FILE):
            self._lines.append(self._store.read(EVENTS_FILE))

    def __call__(self, event: Event) -> None:
        """Writes an event. An object store gets all lines at the start of a phase, and at the end."""
        record = {key: _finite(value) for key, value in to_record(event).items()}
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}, default=str)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
            return
        self._lines.append(f"{line}\n".encode())
        if isinstance(event, PhaseStarted | RunFinished):
            self.close()

    def close(self) -> None:
        """Writes the lines that an object store has not got yet."""
        if self._store is not None and self._lines:
            self._lines = [b"".join(self._lines)]
            self._store.write(EVENTS_FILE, self._lines[0])


CALLBACKS: dict[str, Callable[..., Any]] = {"jsonlines": JsonLines, "wandb": WandbLogger, "mlflow": MlflowLogger}
"""Shipped receivers of events. TensorBoard needs none: workers write its files themselves."""


class Callbacks:
    """Forwards events to receivers. The first error of each is reported, and ends neither the run nor the others."""

    def __init__(self, receivers: Iterable[OnEvent], on_error: OnEvent, warnings: Iterable[str] = ()) -> None:
        """Starts with the receivers.

        Args:
            receivers: Called with every event. A method `close`, if there is one, is called at the end.
            on_error: Called with a warning after the first error of a receiver.
            warnings: Earlier warnings, which the receivers get at once.
        """
        self._receivers, self._on_error = list(receivers), on_error
        self._failed: set[int] = set()
        for text in list(warnings):
            self(Warned(text))

    def __call__(self, event: Event) -> None:
        """Forwards an event."""
        for receiver in self._receivers:
            self._try(receiver, lambda receiver=receiver: receiver(event))  # type: ignore[misc]

    def close(self) -> None:
        """Closes the receivers."""
        for receiver in self._receivers:
            if callable(close := getattr(receiver, "close", None)):
                self._try(receiver, close)

    def _try(self, receiver: Any, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - user-defined code and services must not end a run
            if id(receiver) not in self._failed:
                self._failed.add(id(receiver))
                name = getattr(receiver, "__qualname__", type(receiver).__qualname__)
                text = (
                    f"the callback {name} failed: {type(error).__name__}: {error}. Its later errors are not reported."
                )
                self._on_error(Warned(text))


def make_callbacks(config: Config, path: str) -> list[OnEvent]:
    """Returns the receivers of `run.callbacks`.

    Each is built with the arguments `config` and `path` (the run's folder), if it names them.

    Raises:
        ValueError: If one is unknown, cannot be built, or needs a package that is missing.
    """
    made: list[OnEvent] = []
    for name in config.run.callbacks:
        build = choose_or_import(CALLBACKS, name, "run.callbacks")
        receiver = call_with(build, "run.callbacks", {"config": config, "path": path}, {})
        if not callable(receiver):
            raise ValueError(f"run.callbacks must name classes whose objects can be called; got {name!r}.")
        made.append(receiver)
    return made


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
