"""A run's timeline as lanes, one per process, without the pauses between its starts. No figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_MAX_LANES, _MAX_BARS = 40, 3_000
"""Maximum numbers on a page. With many thousand bars the file would be too large."""


@dataclass(frozen=True)
class Bar:
    """A phase, cycle or merge, drawn as one bar."""

    began: float
    """Seconds since the run began, without pauses."""
    seconds: float
    chain: int | None = None
    """Chain of a cycle; None for other spans."""
    text: str = ""
    """Label, drawn if the bar is wide enough."""


@dataclass(frozen=True)
class Lane:
    """The bars of one process."""

    name: str
    bars: list[Bar]


@dataclass(frozen=True)
class Lanes:
    """The timeline of a run."""

    lanes: list[Lane]
    restarts: list[float]
    """When the second and later starts began, in seconds since the run began, without pauses."""
    seconds: float
    """Total duration of all starts."""
    num_explorers: int
    """Number of processes that ran cycles, shown or not."""
    num_cycles: int
    max_concurrent: int
    """Maximum number of concurrent cycles."""
    mean_concurrent: float
    """Mean number of concurrent cycles over the time with at least one."""
    num_hidden: int
    """Number of bars that are not shown, because a page has a maximum."""


def lanes_of(timeline: Mapping[str, Any]) -> Lanes:
    """Returns the lanes of a timeline: starting, pretraining, each explorer process, and the superposer.

    Args:
        timeline: Content of `timeline.json`: `starts`, each with `began` and `ended`, and `spans` with `kind`, `began`,
            `ended`, `start`, and for cycles `chain`, `cycle`, `node` and `process`. Times are seconds since 1970.

    Raises:
        KeyError, TypeError or IndexError: If the timeline is malformed.
    """
    starts, spans = list(timeline["starts"]), sorted(timeline["spans"], key=lambda span: float(span["began"]))
    ends = [
        max([float(start["ended"]), *(float(span["ended"]) for span in spans if span["start"] == index)])
        for index, start in enumerate(starts)
    ]
    lengths = [max(end - float(start["began"]), 0.0) for start, end in zip(starts, ends, strict=True)]
    offsets = list(accumulate(lengths, initial=0.0))
    cycles = [span for span in spans if span["kind"] == "cycle"]

    def bar(span: Mapping[str, Any]) -> Bar:
        start = span["start"]
        # Clocks differ between machines: a bar must not begin before its start.
        began = offsets[start] + max(float(span["began"]) - float(starts[start]["began"]), 0.0)
        seconds = max(float(span["ended"]) - float(span["began"]), 0.0)
        is_cycle = span["kind"] == "cycle"
        return (
            Bar(began, seconds, span["chain"], f"{span['chain']}.{span['cycle']}") if is_cycle else Bar(began, seconds)
        )

    explorers: dict[tuple[Any, Any], list[Bar]] = {}
    for span in cycles:
        explorers.setdefault((span.get("node"), span.get("process")), []).append(bar(span))
    lanes = [
        Lane("starting", [bar(span) for span in _starting(spans)]),
        Lane("pretraining", [bar(span) for span in spans if span["kind"] == "pretrain"]),
        *(Lane(_explorer(index, *key), bars) for index, (key, bars) in enumerate(explorers.items())),
        Lane("superposer", [bar(span) for span in spans if span["kind"] in ("merge", "superpose")]),
    ]
    shown = _shown([lane for lane in lanes if lane.bars])
    max_concurrent, mean_concurrent = _concurrency(cycles)
    return Lanes(
        shown,
        offsets[1:-1],
        offsets[-1],
        len(explorers),
        len(cycles),
        max_concurrent,
        mean_concurrent,
        num_hidden=sum(len(lane.bars) for lane in lanes) - sum(len(lane.bars) for lane in shown),
    )


def _starting(spans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the spans of starting Ray, and of starting explorers: from phase explore to its first cycle or merge."""
    starting = [span for span in spans if span["kind"] == "starting"]
    for span in spans:
        if span["kind"] == "explore":
            work = [other for other in spans if other["start"] == span["start"] and other["kind"] in ("cycle", "merge")]
            starting.append({**span, "ended": min([float(span["ended"]), *(float(other["began"]) for other in work)])})
    return starting


def _explorer(index: int, node: Any, process: Any) -> str:
    location = "" if process is None else f" ({str(node or '')[:6]}:{process})"
    return f"explorer {index + 1}{location}"


def _shown(lanes: list[Lane]) -> list[Lane]:
    """Returns the first lanes and the superposer's, with their longest bars: short bars are hardly visible."""
    shown = lanes if len(lanes) <= _MAX_LANES else [*lanes[: _MAX_LANES - 1], lanes[-1]]
    bars = sorted((bar for lane in shown for bar in lane.bars), key=lambda bar: -bar.seconds)
    kept = {id(bar) for bar in bars[:_MAX_BARS]}
    return [Lane(lane.name, [bar for bar in lane.bars if id(bar) in kept]) for lane in shown]


def _concurrency(cycles: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """Returns the maximum number of concurrent cycles, and their mean number over the time with at least one."""
    changes = sorted(
        [*((float(span["began"]), 1) for span in cycles), *((float(span["ended"]), -1) for span in cycles)]
    )
    running = peak = 0
    busy = work = last = 0.0
    for moment, change in changes:
        if running:
            busy += moment - last
            work += running * (moment - last)
        running, last = running + change, moment
        peak = max(peak, running)
    return peak, work / busy if busy else float(peak)
