"""Progress of a running job: a live view on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from html import escape
from types import TracebackType

from rich.console import Console
from rich.live import Live

from suptickets_ray.progress.events import (
    EpochEnded,
    Event,
    PhaseStarted,
    ResultWritten,
    Resumed,
    Starting,
    TicketFinished,
    TicketMerged,
    TrialFinished,
    Waiting,
    Warned,
)
from suptickets_ray.progress.job_state import PHASES, JobState
from suptickets_ray.progress.job_view import JobView, finished_line, number_texts, phase_bars, time_line

_REDRAW_SECONDS = 0.3


def resumed_text(event: Resumed) -> str:
    """Returns the sentence that tells what an earlier start has left."""
    if event.epoch is not None:
        return f"continuing pretraining from epoch {event.epoch}"
    return f"resuming with {event.what}"


class TerminalView:
    """Bars, numbers and tickets on a terminal, updated in place. A line for each finished phase stays."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates the view.

        Args:
            console: A console on a terminal.
            clock: Returns the time in seconds.
        """
        self._console, self._clock = console, clock
        self._state = JobState(began=clock())
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
        if isinstance(event, PhaseStarted | ResultWritten) and (line := finished_line(self._state, self._clock())):
            self._console.print(line, markup=False, highlight=False)
        self._state.update(event, self._clock())
        match event:
            case Resumed():
                self._console.print(resumed_text(event), markup=False, highlight=False)
            case Waiting(text):
                self._console.print(text, markup=False, highlight=False)
            case Warned(text):
                self._console.print(f"WARNING: {text}", style="bold red", markup=False, highlight=False)
            case ResultWritten():
                self._live.stop()  # the table follows

    def _render(self) -> JobView:
        return JobView(self._state, self._clock())


class NotebookView:
    """The same bars and numbers below a notebook cell, updated in place. Needs IPython."""

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
        # Ray imports tqdm, which asks for widgets that nothing here uses.
        warnings.filterwarnings("ignore", message="IProgress not found")
        self._html, self._clock = HTML, clock
        self._state = JobState(began=clock())
        self._messages: list[str] = []
        self._shown = clock()
        self._handle = display(HTML(self._render()), display_id=True)

    def __call__(self, event: Event) -> None:
        """Shows an event. Frequent events are drawn only a few times per second."""
        now = self._clock()
        self._state.update(event, now)
        match event:
            case Waiting(text) | Warned(text):
                self._messages.append(text)
            case Resumed():
                self._messages.append(resumed_text(event))
        is_rare = isinstance(event, Starting | PhaseStarted | Waiting | Warned | TicketMerged | ResultWritten)
        if is_rare or now - self._shown > _REDRAW_SECONDS:
            self._shown = now
            self._handle.update(self._html(self._render()))

    def _render(self) -> str:
        return html_view(self._state, self._clock(), self._messages)


def html_view(state: JobState, now: float, messages: list[str]) -> str:
    """Returns the view as HTML: a bar for each phase, the numbers, and messages."""
    rows = "".join(
        f"<tr><td>{escape(bar.title)}</td>"
        f'<td><progress value="{bar.done}" max="{max(bar.total, 1)}"></progress></td>'
        f"<td>{bar.done} of {bar.total or '?'} {bar.unit}</td></tr>"
        for bar in phase_bars(state)
    )
    now_text = "done" if state.is_done else PHASES.get(state.phase, "") if state.phase else ""
    texts = [now_text, time_line(state, now), *number_texts(state, now)]
    numbers = escape("; ".join(filter(None, texts)))
    return f"<table>{rows}</table><p>{numbers}</p>" + "".join(f"<p>{escape(text)}</p>" for text in messages)


class PlainView:
    """Writes one line for each event that a log needs: phases, every tenth of pretraining, tickets, merges."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Creates the view.

        Args:
            write: Called with each line, e.g. `Console.print`.
            clock: Returns the time in seconds.
        """
        self._write, self._clock = write, clock
        self._start = clock()
        self._state = JobState(began=self._start)
        self._num_finished = 0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: Event) -> None:
        """Writes the line of an event, if it has one."""
        self._state.update(event, self._clock())
        line = self._line(event)
        if line:
            self._write(f"{self._clock() - self._start:6.1f} s  {line}")

    def _line(self, event: Event) -> str:
        state = self._state
        match event:
            case Starting(what):
                return f"starting {what}"
            case PhaseStarted():
                number = f" {event.number} of {event.of}" if (event.of or 1) > 1 else ""
                return PHASES[event.name] + number
            case Warned(text):
                return f"WARNING: {text}"
            case Waiting(text):
                return text
            case Resumed():
                self._num_finished += event.tickets or 0
                return resumed_text(event)
            case EpochEnded() if event.epoch == event.epochs or event.epoch % max(event.epochs // 10, 1) == 0:
                return f"epoch {event.epoch} of {event.epochs}: loss {event.loss:.4f}, validation {_scored(event)}"
            case TrialFinished():
                values = " ".join(f"{key}={value}" for key, value in event.values.items())
                return f"trial {state.trials} of {state.num_trials}: {values}, validation {_scored(event)}"
            case TicketFinished(chain, cycle):
                self._num_finished += 1
                if state.is_search:
                    return f"ticket: chain {chain}, cycle {cycle}"
                return (
                    f"ticket {self._num_finished} of {state.num_tickets}: chain {chain}, cycle {cycle}, "
                    f"validation {_scored(event)}"
                )
            case TicketMerged(chain, cycle, accepted, score):
                line = f"chain {chain}, cycle {cycle} {'accepted' if accepted else 'rejected'}"
                return line if score is None else f"{line}: validation {_scored(event)} with this ticket merged"
        return ""


def _scored(event: EpochEnded | TicketFinished | TicketMerged | TrialFinished) -> str:
    """Returns the metric and its value, e.g. "accuracy 93.10%"."""
    return f"{event.metric.title} {event.metric.text(event.validation_score)}"
