"""Progress of a running job: a live view on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

_REDRAW_SECONDS = 0.3
PHASES = {"pretrain": "pretraining", "explore": "exploring", "superpose": "evaluating", "search": "searching"}


@dataclass
class Progress:
    """The state after all events so far. It reads no clock; the time is an argument."""

    phase: str = ""
    epoch: int = 0
    epochs: int = 0
    tickets: int = 0
    num_tickets: int = 0
    cycle_epochs: int = 0
    stored: int = 0
    merged: int = 0
    trials: int = 0
    num_trials: int = 0
    accuracies: dict[str, float] = field(default_factory=dict)
    _phase_start: float = 0.0
    _first_epoch: int | None = None
    _first_epoch_time: float = 0.0

    def update(self, event: dict[str, Any], now: float) -> None:
        """Updates the state with one event.

        Args:
            event: An event of `train` or `tune`.
            now: The present time in seconds.
        """
        kind = event["kind"]
        if kind == "phase":
            self.phase, self._phase_start = event["name"], now
            self.epochs = event.get("epochs", self.epochs)
            self.num_trials = event.get("trials", self.num_trials)
            if "chains" in event:
                self.num_tickets = event["chains"] * event["cycles"]
        elif kind == "epoch":
            if self._first_epoch is None:
                self._first_epoch, self._first_epoch_time = event["epoch"], now
            self.epoch, self.epochs = event["epoch"], event["epochs"]
            self.accuracies["pretraining"] = event["validation_accuracy"]
        elif kind == "resumed":
            self.stored = event.get("tickets", self.stored)
            self.tickets += event.get("tickets", 0)
        elif kind == "ticket":
            self.tickets += 1
            self.accuracies["last ticket"] = event["validation_accuracy"]
        elif kind == "trial":
            self.trials += 1
            self.accuracies["last trial"] = event["validation_accuracy"]
            best = self.accuracies.get("best trial", 0.0)
            self.accuracies["best trial"] = max(best, event["validation_accuracy"])
        elif kind == "merge":
            self.merged += 1
            if "validation_accuracy" in event and event["accepted"]:  # a rejected merge does not change the sup-ticket
                self.accuracies["sup-ticket"] = event["validation_accuracy"]

    def rows(self, now: float) -> list[tuple[str, str]]:
        """Returns the lines to show, each as a name and a text."""
        left = self.seconds_left(now)
        return [
            ("phase", PHASES.get(self.phase, "starting Ray")),
            ("epochs", f"{self.epoch} of {self.epochs}"),
            ("tickets", f"{self.tickets} of {self.num_tickets or '?'}, {self.merged} merged"),
            *([("trials", f"{self.trials} of {self.num_trials}")] if self.num_trials else []),
            ("left", "" if left is None else f"{left:.0f} s"),
            *((name, f"{accuracy:.2%} on validation") for name, accuracy in self.accuracies.items()),
        ]

    def seconds_left(self, now: float) -> float | None:
        """Returns the estimated remaining seconds of the phase, or None without an estimate."""
        if self.phase == "pretrain" and self._first_epoch is not None and self.epoch > self._first_epoch:
            rate = (now - self._first_epoch_time) / (self.epoch - self._first_epoch)
            return rate * (self.epochs - self.epoch)
        if self.phase == "explore" and self.tickets > self.stored:
            rate = (now - self._phase_start) / (self.tickets - self.stored)
            return rate * (self.num_tickets - self.tickets)
        if self.phase == "search" and self.trials:
            return (now - self._phase_start) / self.trials * (self.num_trials - self.trials)
        return None


class TerminalView:
    """A few lines on a terminal, updated in place."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates the view.

        Args:
            console: A console on a terminal.
            clock: Returns the time in seconds.
        """
        self._console, self._clock = console, clock
        self._progress = Progress()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> TerminalView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Shows an event."""
        self._progress.update(event, self._clock())
        if event["kind"] == "resumed":
            self._console.print(f"resuming with {event['what']}")
        if event["kind"] == "waiting":
            self._console.print(event["text"], markup=False)
        if event["kind"] == "warning":
            self._console.print(event["text"], style="bold red", markup=False)

    def _render(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        for row in self._progress.rows(self._clock()):
            grid.add_row(*row)
        return grid


class NotebookView:
    """The same lines below a notebook cell, updated in place. Needs IPython."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Shows an empty view below the current cell.

        Args:
            clock: Returns the time in seconds.

        Raises:
            ValueError: If IPython is not installed.
        """
        try:
            from IPython.display import HTML, display
        except ImportError as error:
            raise ValueError("Cannot show a NotebookView: IPython is missing. Run it in Jupyter.") from error
        self._html, self._clock = HTML, clock
        self._progress = Progress()
        self._messages: list[str] = []
        self._shown = clock()
        self._handle = display(HTML(self._render()), display_id=True)

    def __call__(self, event: dict[str, Any]) -> None:
        """Shows an event. Frequent events are drawn only a few times per second."""
        now = self._clock()
        self._progress.update(event, now)
        if event["kind"] in ("warning", "waiting"):
            self._messages.append(event["text"])
        if event["kind"] in ("phase", "warning", "waiting", "merge") or now - self._shown > _REDRAW_SECONDS:
            self._shown = now
            self._handle.update(self._html(self._render()))

    def _render(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
            for name, value in self._progress.rows(self._clock())
        )
        return f"<table>{rows}</table>" + "".join(f"<p>{escape(text)}</p>" for text in self._messages)


class PlainView:
    """Writes one line for each event that a log needs: phases, every tenth of pretraining, tickets, merges."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Creates the view.

        Args:
            write: Called with each line, e.g. `Console.print`.
            clock: Returns the time in seconds.
        """
        self._write, self._clock = write, clock
        self._progress = Progress()
        self._start = clock()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        """Writes the line of an event, if it has one."""
        self._progress.update(event, self._clock())
        line = self._line(event)
        if line:
            self._write(f"{self._clock() - self._start:6.1f} s  {line}")

    def _line(self, event: dict[str, Any]) -> str:
        kind, progress = event["kind"], self._progress
        if kind == "phase":
            number = f" {event['number']} of {event['of']}" if event.get("of", 1) > 1 else ""
            return PHASES[event["name"]] + number
        if kind == "warning":
            return f"WARNING: {event['text']}"
        if kind == "waiting":
            return str(event["text"])
        if kind == "resumed":
            return f"resuming with {event['what']}"
        if kind == "epoch" and (
            event["epoch"] == event["epochs"] or event["epoch"] % max(event["epochs"] // 10, 1) == 0
        ):
            return (
                f"epoch {event['epoch']} of {event['epochs']}: loss {event['loss']:.4f}, "
                f"validation accuracy {event['validation_accuracy']:.2%}"
            )
        if kind == "trial":
            values = " ".join(f"{key}={value}" for key, value in event["values"].items())
            return (
                f"trial {progress.trials} of {progress.num_trials}: {values}, "
                f"validation accuracy {event['validation_accuracy']:.2%}"
            )
        if kind == "ticket" and progress.num_trials:
            return f"ticket: chain {event['chain']}, cycle {event['cycle']}"
        if kind == "ticket":
            return (
                f"ticket {progress.tickets} of {progress.num_tickets}: chain {event['chain']}, cycle {event['cycle']}, "
                f"validation accuracy {event['validation_accuracy']:.2%}"
            )
        if kind == "merge":
            outcome = "accepted" if event["accepted"] else "rejected"
            line = f"chain {event['chain']}, cycle {event['cycle']} {outcome}"
            if "validation_accuracy" not in event:
                return line
            return f"{line}: validation accuracy {event['validation_accuracy']:.2%} with this ticket merged"
        return ""
