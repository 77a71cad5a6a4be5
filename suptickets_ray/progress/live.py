"""Progress of a running job: a live view on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from suptickets_ray.metric import ACCURACY, Metric
from suptickets_ray.progress.events import (
    EpochEnded,
    Event,
    PhaseStarted,
    ResultWritten,
    Resumed,
    TicketFinished,
    TicketMerged,
    TrialFinished,
    Waiting,
    Warned,
)

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
    scores: dict[str, float] = field(default_factory=dict)
    """Scores on validation by the name of the network."""
    metric: Metric = ACCURACY
    _phase_start: float = 0.0
    _first_epoch: int | None = None
    _first_epoch_time: float = 0.0

    def update(self, event: Event, now: float) -> None:
        """Updates the state with one event.

        Args:
            event: An event of the run or search.
            now: The present time in seconds.
        """
        self.metric = getattr(event, "metric", self.metric)
        match event:
            case PhaseStarted():
                self.phase, self._phase_start = event.name, now
                self.epochs = event.epochs or self.epochs
                self.num_trials = event.trials or self.num_trials
                self.num_tickets = (event.chains or 0) * (event.cycles or 0) or self.num_tickets
            case EpochEnded():
                if self._first_epoch is None:
                    self._first_epoch, self._first_epoch_time = event.epoch, now
                self.epoch, self.epochs = event.epoch, event.epochs
                self.scores["pretraining"] = event.validation_score
            case Resumed(tickets=int(tickets)):
                self.stored = tickets
                self.tickets += tickets
            case TicketFinished():
                self.tickets += 1
                self.scores["last ticket"] = event.validation_score
            case TrialFinished():
                self.trials += 1
                self.scores["last trial"] = event.validation_score
                best = self.scores.get("best trial", self.metric.worst)
                if "best trial" not in self.scores or self.metric.is_better(event.validation_score, best):
                    self.scores["best trial"] = event.validation_score
            case TicketMerged():
                self.merged += 1
                # A rejected merge does not change the sup-ticket.
                if event.validation_score is not None and event.accepted:
                    self.scores["sup-ticket"] = event.validation_score

    def rows(self, now: float) -> list[tuple[str, str]]:
        """Returns the lines to show, each as a name and a text."""
        left = self.seconds_left(now)
        return [
            ("phase", PHASES.get(self.phase, "starting Ray")),
            ("epochs", f"{self.epoch} of {self.epochs}"),
            ("tickets", f"{self.tickets} of {self.num_tickets or '?'}, {self.merged} merged"),
            *([("trials", f"{self.trials} of {self.num_trials}")] if self.num_trials else []),
            ("left", "" if left is None else f"{left:.0f} s"),
            *((name, f"{self._text(score)} on validation") for name, score in self.scores.items()),
        ]

    def _text(self, score: float) -> str:
        """Returns a score; the metric is named unless it is the accuracy."""
        return self.metric.text(score) if self.metric == ACCURACY else f"{self.metric.title} {self.metric.text(score)}"

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

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        self._progress.update(event, self._clock())
        match event:
            case Resumed(what):
                self._console.print(f"resuming with {what}")
            case Waiting(text):
                self._console.print(text, markup=False)
            case Warned(text):
                self._console.print(text, style="bold red", markup=False)
            case ResultWritten():
                self._live.stop()  # the table follows

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

    def __call__(self, event: Event) -> None:
        """Shows an event. Frequent events are drawn only a few times per second."""
        now = self._clock()
        self._progress.update(event, now)
        if isinstance(event, Waiting | Warned):
            self._messages.append(event.text)
        if isinstance(event, PhaseStarted | Waiting | Warned | TicketMerged) or now - self._shown > _REDRAW_SECONDS:
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

    def __call__(self, event: Event) -> None:
        """Writes the line of an event, if it has one."""
        self._progress.update(event, self._clock())
        line = self._line(event)
        if line:
            self._write(f"{self._clock() - self._start:6.1f} s  {line}")

    def _line(self, event: Event) -> str:
        progress = self._progress
        match event:
            case PhaseStarted():
                number = f" {event.number} of {event.of}" if (event.of or 1) > 1 else ""
                return PHASES[event.name] + number
            case Warned(text):
                return f"WARNING: {text}"
            case Waiting(text):
                return text
            case Resumed(what):
                return f"resuming with {what}"
            case EpochEnded() if event.epoch == event.epochs or event.epoch % max(event.epochs // 10, 1) == 0:
                return f"epoch {event.epoch} of {event.epochs}: loss {event.loss:.4f}, validation {_scored(event)}"
            case TrialFinished():
                values = " ".join(f"{key}={value}" for key, value in event.values.items())
                return f"trial {progress.trials} of {progress.num_trials}: {values}, validation {_scored(event)}"
            case TicketFinished(chain, cycle):
                if progress.num_trials:
                    return f"ticket: chain {chain}, cycle {cycle}"
                return (
                    f"ticket {progress.tickets} of {progress.num_tickets}: chain {chain}, cycle {cycle}, "
                    f"validation {_scored(event)}"
                )
            case TicketMerged(chain, cycle, accepted, score):
                line = f"chain {chain}, cycle {cycle} {'accepted' if accepted else 'rejected'}"
                return line if score is None else f"{line}: validation {_scored(event)} with this ticket merged"
        return ""


def _scored(event: EpochEnded | TicketFinished | TicketMerged | TrialFinished) -> str:
    """Returns the metric and its value, e.g. "accuracy 93.10%"."""
    return f"{event.metric.title} {event.metric.text(event.validation_score)}"
