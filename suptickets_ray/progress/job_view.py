"""Draws the state of a job: a bar for each phase, the numbers of the present one, and the tickets as a grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from suptickets_ray.progress.job_state import PHASES, JobState, TicketState
from suptickets_ray.progress.words import time_text

_SYMBOLS = {
    TicketState.MERGED: ("●", "#", "green"),
    TicketState.LEFT_OUT: ("✗", "x", "red"),
    TicketState.TRAINED: ("○", "o", ""),
    TicketState.RUNNING: ("▸", ">", "cyan"),
    TicketState.WAITING: ("·", ".", "dim"),
}
"""Symbol, its form in ASCII, and style of each state, in the order of the legend."""
_MAX_GRID_LINES = 6
"""Lines of the grid. A terminal of 24 lines has room for them and for the messages of a run."""


@dataclass(frozen=True)
class PhaseBar:
    """One phase as a bar."""

    title: str
    done: int
    total: int
    """0 if it is not known."""
    unit: str


def phase_bars(state: JobState) -> list[PhaseBar]:
    """Returns the bars of a run or search, in the order of its phases."""
    number, of = state.pretraining
    title = f"pretraining {number}/{of}" if of > 1 else "pretraining"
    bars = [PhaseBar(title, state.epoch, state.epochs, "epochs")]
    if state.is_search:
        return [*bars, PhaseBar("searching", state.trials, state.num_trials, "trials")]
    merged = state.count(TicketState.MERGED, TicketState.LEFT_OUT)
    return [
        *bars,
        PhaseBar("exploring", merged + state.count(TicketState.TRAINED), state.num_tickets, "tickets"),
        PhaseBar("superposing", merged, state.num_tickets, "tickets"),
    ]


def time_line(state: JobState, now: float) -> str:
    """Returns the elapsed and the remaining time of the whole job, as h:mm:ss."""
    left = state.seconds_left(now)
    remaining = "" if left is None or state.is_done else f", about {time_text(left)} left"
    return f"{time_text(now - state.began)} elapsed{remaining}"


def number_texts(state: JobState, now: float) -> list[str]:
    """Returns what happens now and its numbers: loss, metrics, examples per second."""
    if state.starting:
        return [f"starting {state.starting}: {now - state.starting_began:.0f} s"]
    parts = [] if state.loss is None else [f"loss {state.loss:.4f}"]
    metrics = [f"{name} {state.metric.text(value)}" for name, value in shown_metrics(state).items()]
    parts += metrics if state.phase == "pretrain" or not metrics else ["validation:", *metrics]
    if state.examples_per_second:
        parts.append(f"{state.examples_per_second:,.0f} examples/s")
    if state.phase == "superpose" and not state.is_done:
        parts.append("evaluating every network")
    return parts


def shown_metrics(state: JobState) -> dict[str, float]:
    """Returns the validation metrics of the present phase, or of the whole search."""
    if state.phase == "pretrain":
        return {"validation": state.metrics["pretraining"]} if "pretraining" in state.metrics else {}
    is_search = state.phase == "search"
    chosen = ("last trial", "best trial") if is_search else ("pretraining", "last ticket", "sup-ticket")
    return {name: state.metrics[name] for name in chosen if name in state.metrics}


def finished_line(state: JobState, now: float) -> str:
    """Returns the line that stays on the screen when the present phase ends; empty if this start had nothing to do."""
    if state.phase is None or (state.phase == "pretrain" and not state.has_pretrained):
        return ""
    seconds = time_text(now - state.phase_began)
    match state.phase:
        case "pretrain":
            number, of = state.pretraining
            title = f"pretraining {number} of {of}" if of > 1 else "pretraining"
            text = f"{title}: {state.epoch} epochs"
        case "explore":
            merged, out = state.count(TicketState.MERGED), state.count(TicketState.LEFT_OUT)
            text = f"exploring: {merged + out} tickets, {merged} merged, {out} left out"
        case "search":
            text = f"searching: {state.trials} trials"
        case _:
            text = PHASES[state.phase]
    kept = ("validation", "sup-ticket", "best trial") if state.phase != "superpose" else ()
    scores = [f"{name} {state.metric.text(value)}" for name, value in shown_metrics(state).items() if name in kept]
    return ", ".join([f"{text} in {seconds}", *scores])


def ticket_state(state: JobState, chain: int, cycle: int) -> TicketState:
    """Returns how far a ticket is."""
    return state.tickets.get((chain, cycle), TicketState.WAITING)


@dataclass(frozen=True)
class JobView:
    """The whole view at one time, for a console of any width."""

    state: JobState
    now: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the lines."""
        yield Text(time_line(self.state, self.now))
        yield self._bars(options.max_width)
        if numbers := number_texts(self.state, self.now):
            yield from packed([Text(text) for text in numbers], options.max_width, "  ")
        if not self.state.is_search and self.state.num_tickets:
            yield from self._grid(options.max_width, options.ascii_only)

    def _bars(self, width: int) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        for bar in phase_bars(self.state):
            count = f"{bar.done}/{bar.total or '?'}" + (f" {bar.unit}" if width >= 60 else "")
            table.add_row(bar.title, ProgressBar(total=max(bar.total, 1), completed=bar.done), count)
        return table

    def _grid(self, width: int, is_ascii: bool) -> Iterator[Text]:
        """Yields the tickets, a group of symbols for each chain, and the legend."""
        state = self.state
        chains = []
        for chain in range(state.chains):
            group = Text()
            for cycle in range(state.cycles):
                symbol, plain, style = _SYMBOLS[ticket_state(state, chain, cycle)]
                group.append(plain if is_ascii else symbol, style)
            chains.append(group)
        lines = packed(chains, width, " ")
        yield from lines[:_MAX_GRID_LINES]
        if len(lines) > _MAX_GRID_LINES:
            yield Text(f"and {len(lines) - _MAX_GRID_LINES} more lines of chains")
        counts = {one: state.count(one) for one in TicketState}
        counts[TicketState.WAITING] = state.num_tickets - len(state.tickets)
        legend = [
            Text(f"{plain if is_ascii else symbol} {counts[one]} {one.value}")
            for one, (symbol, plain, _) in _SYMBOLS.items()
            if counts[one]
        ]
        yield from packed(legend, width, "  ")


def packed(parts: Sequence[Text], width: int, gap: str) -> list[Text]:
    """Returns as few lines as hold the parts in order. A part is split only if it is longer than a line."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(gap) + part.cell_len <= width:
            lines[-1].append(gap).append_text(part)
        else:
            lines.append(part.copy())
    return lines
