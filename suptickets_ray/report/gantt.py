"""A run's timeline as lanes, one for each process, with the pauses between its starts cut out. No figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_MAX_LANES, _MAX_BARS = 40, 3_000
"""What a page shows at most; many thousand bars would be too large a file."""


@dataclass(frozen=True)
class Bar:
    """Something that took time."""

    began: float
    """Seconds since the run began, pauses left out."""
    seconds: float
    chain: int | None = None
    """Whose cycle it is, where it is one."""
    text: str = ""
    """Written on it where there is room."""


@dataclass(frozen=True)
class Lane:
    """What one process did, one thing after another."""

    name: str
    bars: list[Bar]


@dataclass(frozen=True)
class Lanes:
    """The timeline of a run."""

    lanes: list[Lane]
    restarts: list[float]
    """Where the second and later starts began, in seconds since the run began, pauses left out."""
    seconds: float
    """How long all starts took together."""
    num_explorers: int
    """Processes that have run cycles, shown or not."""
    num_cycles: int
    most_at_once: int
    """Most cycles that ran at the same time."""
    mean_at_once: float
    """Cycles that ran at the same time, on average over the time in which any did."""
    num_hidden: int
    """Bars that are not shown, because there are too many."""


def lanes_of(timeline: Mapping[str, Any]) -> Lanes:
    """Returns the lanes of what `timeline.json` holds: starting, pretraining, each explorer's process, the superposer.

    Args:
        timeline: `starts`, each with `began` and `ended`, and `spans` with `kind`, `began`, `ended`, `start`, and for
            cycles `chain`, `cycle`, `node` and `process`; times are seconds since 1970.

    Raises:
        KeyError, TypeError or IndexError: If it is none.
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
        # Machines' clocks differ a little: nothing is shown before the start that it belongs to.
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
    most, mean = _at_once(cycles)
    return Lanes(
        shown,
        offsets[1:-1],
        offsets[-1],
        len(explorers),
        len(cycles),
        most,
        mean,
        num_hidden=sum(len(lane.bars) for lane in lanes) - sum(len(lane.bars) for lane in shown),
    )


def _starting(spans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """When Ray was started, and after pretraining the explorers: until in that start the first cycle or merge began."""
    waits = [span for span in spans if span["kind"] == "starting"]
    for span in spans:
        if span["kind"] == "explore":
            work = [other for other in spans if other["start"] == span["start"] and other["kind"] in ("cycle", "merge")]
            waits.append({**span, "ended": min([float(span["ended"]), *(float(other["began"]) for other in work)])})
    return waits


def _explorer(index: int, node: Any, process: Any) -> str:
    where = "" if process is None else f" ({str(node or '')[:6]}:{process})"
    return f"explorer {index + 1}{where}"


def _shown(lanes: list[Lane]) -> list[Lane]:
    """The first lanes and the superposer's, and of their bars the longest: what is short would hardly be seen."""
    few = lanes if len(lanes) <= _MAX_LANES else [*lanes[: _MAX_LANES - 1], lanes[-1]]
    bars = sorted((bar for lane in few for bar in lane.bars), key=lambda bar: -bar.seconds)
    kept = {id(bar) for bar in bars[:_MAX_BARS]}
    return [Lane(lane.name, [bar for bar in lane.bars if id(bar) in kept]) for lane in few]


def _at_once(cycles: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """Most and mean number of cycles under way at the same time, over the time with any."""
    changes = sorted(
        [*((float(span["began"]), 1) for span in cycles), *((float(span["ended"]), -1) for span in cycles)]
    )
    running = most = 0
    busy = work = last = 0.0
    for moment, change in changes:
        if running:
            busy += moment - last
            work += running * (moment - last)
        running, last = running + change, moment
        most = max(most, running)
    return most, work / busy if busy else float(most)
