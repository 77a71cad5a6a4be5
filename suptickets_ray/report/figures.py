"""Figures as SVG inside a page: they take the page's own text colour, so that they read well in dark mode too."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from suptickets_ray.report.gantt import Lanes

_COLOR = "#123457"
"""Stands for the page's text colour until the SVG is written."""
_ACCENT = "#d95f02"
_COLORS = (_ACCENT, "#1b9e77", "#8580c9", "#e7298a", "#66a61e", "#c99700", "#a6761d", "#808080")
"""ColorBrewer's Dark2, two of it lighter, so that all can be told from a white and from a black page."""
_HEIGHT = 3.2
_CELL, _MAX_LABEL = 40, 36
"""Pixels of a cell of a heat map, and letters of a label in a figure."""


@dataclass(frozen=True)
class _Shape:
    """What a figure is drawn for; the page shows one of the two."""

    name: str
    """As the page's style names it."""
    width: float
    """Inches at least."""
    pixels: int
    """For an inch at least, so that words can be read."""

    @property
    def is_narrow(self) -> bool:
        return self.name == "phone"


_DESK, _PHONE = _Shape("desk", 6.4, 84), _Shape("phone", 3.9, 80)


@dataclass(frozen=True)
class Series:
    """Points of one kind; None where there is none, or no error."""

    name: str
    ys: Sequence[float | None]
    errors: Sequence[float | None] = ()
    stands_out: bool = False
    color: int = 0
    """Which colour it has in every figure of a page that tells colours by their number."""


def error_bar_figure(
    title: str, xlabel: str, ylabel: str, xs: Sequence[Any], ys: Sequence[float], errors: Sequence[float | None]
) -> str:
    """Returns a figure of points with error bars, as an HTML figure; text values stand side by side."""

    def draw(shape: _Shape) -> Figure:
        figure, axes = _axes(xlabel, ylabel, shape)
        places = list(range(len(xs))) if any(isinstance(x, str) for x in xs) else list(xs)
        axes.errorbar(places, ys, yerr=[error or 0.0 for error in errors], marker="o", color=_ACCENT, capsize=3)
        axes.set_xticks(places, [_plain(x) for x in xs])
        return figure

    return _html(draw, title)


def bar_figure(title: str, xlabel: str, names: Sequence[str], values: Sequence[float]) -> str:
    """Returns a figure of horizontal bars, the first on top, as an HTML figure."""

    def draw(shape: _Shape) -> Figure:
        figure, axes = _axes(xlabel, "", shape, height=max(1.2, 0.25 * len(names) + 0.8))
        axes.barh(range(len(names)), values, color=_ACCENT)
        axes.set_yticks(range(len(names)), [_plain(name) for name in names])
        axes.invert_yaxis()
        return figure

    return _html(draw, title)


def line_figure(
    title: str, xlabel: str, ylabel: str, xs: Sequence[float], lines: Sequence[Series], names: Sequence[str] = ()
) -> str:
    """Returns a figure of lines over common x values, as an HTML figure.

    Args:
        title: The caption, plain text.
        xlabel: What x is.
        ylabel: What y is.
        xs: Ascending.
        lines: One y value for each x. One that stands out is drawn thick, in the first colour. Lines of one name
            follow each other, share a colour and are named once.
        names: Of the x values, where these are not numbers: there is nothing between two of them, so the points are
            not joined. Each is written that there is room for.
    """

    def draw(shape: _Shape) -> Figure:
        figure, axes = _axes(xlabel, ylabel, shape)
        colors: dict[str, str] = {}
        for line in lines:
            is_new = line.name not in colors
            rest = _COLORS[1 + len([name for name in colors if name]) % (len(_COLORS) - 1)]
            color = colors.setdefault(line.name, _ACCENT if line.stands_out else rest)
            style: dict[str, Any] = {"linewidth": 2.5, "zorder": 3} if line.stands_out else {"linewidth": 1.2}
            mark: dict[str, Any] = {"marker": "o", "markersize": 3}
            if names:
                # A wide mark for what stands out, so that it is seen where others lie on it.
                mark = {"linestyle": "", "marker": "_" if line.stands_out else "o", "markeredgewidth": 2}
                mark["markersize"] = 13 if line.stands_out else 3
            label = _plain(line.name) if is_new else "_nolegend_"
            axes.plot(xs, [_number(y) for y in line.ys], color=color, label=label, **style, **mark)
        if names:
            step = -(-len(names) // (12 if shape.is_narrow else 24))
            axes.set_xticks(list(xs)[::step], [_plain(name) for name in names[::step]], rotation=40, ha="right")
        _legend(axes, len(colors), shape)
        return figure

    return _html(draw, title)


def dot_figure(title: str, xlabel: str, rows: Sequence[Series]) -> str:
    """Returns a figure with a row of dots for each name, the first on top, as an HTML figure.

    Args:
        title: The caption, plain text.
        xlabel: What the values are.
        rows: The values of each name, pale where there are several; error bars where there are errors.
    """

    def draw(shape: _Shape) -> Figure:
        figure, axes = _axes(xlabel, "", shape, height=max(1.2, 0.3 * len(rows) + 0.8))
        for place, row in enumerate(rows):
            color = _ACCENT if row.stands_out else _COLORS[2]
            errors = [_number(error, 0.0) for error in row.errors] if any(row.errors) else None
            values = [_number(y) for y in row.ys]
            alpha = 0.5 + 0.5 / len(values)
            places = [place] * len(values)
            axes.errorbar(values, places, xerr=errors, fmt="o", capsize=3, color=color, alpha=alpha)
        axes.set_yticks(range(len(rows)), [_plain(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", color="#888888", alpha=0.3)
        return figure

    return _html(draw, title)


def series_figure(title: str, ylabel: str, groups: Sequence[str], series: Sequence[Series]) -> str:
    """Returns a figure of points with error bars, those of one group side by side, as an HTML figure.

    Args:
        title: The caption, plain text.
        ylabel: What the values are.
        groups: Names along x.
        series: For each a value and an error of every group.
    """

    def draw(shape: _Shape) -> Figure:
        figure, axes = _axes("", ylabel, replace(shape, width=max(shape.width, 1.1 * len(groups) + 2)))
        for index, row in enumerate(series):
            shift = 0.6 * ((index + 0.5) / len(series) - 0.5)
            color = _ACCENT if row.stands_out else _COLORS[1 + row.color % (len(_COLORS) - 1)]
            errors = [_number(error, 0.0) for error in row.errors]
            places = [place + shift for place in range(len(groups))]
            values = [_number(y) for y in row.ys]
            axes.errorbar(places, values, yerr=errors, fmt="o", capsize=3, color=color, label=_plain(row.name))
        is_crowded = len(groups) * max(map(len, groups), default=0) > 7 * shape.width
        turned = {"rotation": 25, "ha": "right"} if is_crowded else {}
        axes.set_xticks(range(len(groups)), [_plain(group) for group in groups], **turned)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.grid(axis="y", color="#888888", alpha=0.3)
        _legend(axes, len(series), shape)
        return figure

    return _html(draw, title)


def lanes_figure(title: str, lanes: Lanes) -> str:
    """Returns the timeline of a run as an HTML figure: a lane for each process, a dashed line for each restart."""

    def draw(shape: _Shape) -> Figure:
        figure, axes = _axes("seconds", "", shape, height=0.28 * len(lanes.lanes) + 0.9)
        wide_enough = 0.25 / shape.width * max(lanes.seconds, 1e-9)
        for place, lane in enumerate(lanes.lanes):
            for bar in lane.bars:
                color = _COLORS[0] if bar.chain is None else _COLORS[1 + bar.chain % (len(_COLORS) - 1)]
                # A sliver at least, so that what was quick is seen too; the edge parts neighbours.
                width = max(bar.seconds, 0.002 * lanes.seconds)
                axes.barh(place, width, left=bar.began, height=0.7, color=color, edgecolor="#8888", linewidth=0.4)
                if bar.text and bar.seconds >= wide_enough:
                    middle = bar.began + bar.seconds / 2
                    axes.text(middle, place, bar.text, ha="center", va="center", fontsize=7, color="black")
        for restart in lanes.restarts:
            axes.axvline(restart, color=_COLOR, linestyle="--", linewidth=1.2)
        axes.set_yticks(range(len(lanes.lanes)), [_plain(lane.name) for lane in lanes.lanes])
        axes.set_ylim(len(lanes.lanes) - 0.4, -0.6)
        axes.set_xlim(0, max(lanes.seconds, 1e-9) * 1.01)
        return figure

    return _html(draw, title)


def heat_map(title: str, names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """Returns a square matrix as an HTML figure, each cell with its number.

    Args:
        title: The caption, plain text.
        names: Of the rows and columns alike.
        values: One row for each name. The smallest value is the palest, the largest off the diagonal the fullest.
    """
    cells = [value for row, line in enumerate(values) for column, value in enumerate(line) if row != column]
    low, high = min(cells, default=0.0), max(cells, default=1.0)
    longest = max(map(len, names), default=1)
    # The columns' names are slanted: side by side they would overlap.
    left, top, right = 8 * longest + 12, 5 * longest + 16, 5 * longest
    width, height = left + _CELL * len(names) + right, top + _CELL * len(names) + 4
    parts = []
    for row, name in enumerate(names):
        y = top + _CELL * row
        parts.append(_text(left - 8, y + _CELL / 2 + 4, name, "end"))
        x = left + _CELL * (row + 0.5)
        parts.append(f'<g transform="rotate(-40 {x:g} {top - 6})">{_text(x, top - 6, name, "start")}</g>')
        for column, value in enumerate(values[row]):
            share = (value - low) / (high - low) if high > low else 1.0
            # Never full, so that the number in the page's text colour can be read on it in both modes.
            opacity = 0.08 if row == column else 0.06 + 0.54 * min(max(share, 0.0), 1.0)
            x = left + _CELL * column
            parts.append(
                f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" fill="{_ACCENT}" '
                f'fill-opacity="{opacity:.2f}"><title>{escape(name)}, {escape(names[column])}: {value:.3f}</title>'
                f"</rect>{_text(x + _CELL / 2 - 0.5, y + _CELL / 2 + 4, f'{value:.2f}', 'middle')}"
            )
    style = f"min-width:{min(0.75 * width, 18 * _CELL):g}px;max-width:{width}px"
    svg = (
        f'<svg viewBox="0 0 {width} {height}" width="100%" style="{style}" fill="currentColor" font-size="12" '
        f'font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )
    return _framed(svg, title)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _axes(xlabel: str, ylabel: str, shape: _Shape, height: float = _HEIGHT) -> tuple[Figure, Any]:
    figure = Figure(figsize=(shape.width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(_plain(xlabel), color=_COLOR)
    axes.set_ylabel(_plain(ylabel), color=_COLOR)
    axes.tick_params(colors=_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_COLOR)
    return figure, axes


def _legend(axes: Any, num_names: int, shape: _Shape) -> None:
    """Beside the figure, or over it where there is no room beside: on the points it would hide some."""
    if num_names > 1:
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        if shape.is_narrow:
            place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 1}
        axes.legend(frameon=False, labelcolor=_COLOR, fontsize=8, **place)


def _plain(text: Any) -> str:
    """Text as it is, of a length that leaves room for the figure: to matplotlib dollars would begin a formula."""
    words = str(text)
    return (words if len(words) <= _MAX_LABEL else words[: _MAX_LABEL - 1] + "…").replace("$", r"\$")


def _number(value: float | None, otherwise: float = math.nan) -> float:
    return otherwise if value is None else value


def _html(draw: Callable[[_Shape], Figure], title: str) -> str:
    """The figure as inline SVG with its title as a caption, once for a desk and once for a phone."""
    return _framed("".join(_svg(draw(shape), title, shape) for shape in (_DESK, _PHONE)), title)


def _svg(figure: Figure, title: str, shape: _Shape) -> str:
    """Nothing in it is fetched from anywhere."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title + shape.name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :].replace(_COLOR, "currentColor")
    # The page has the style of lines; one in a figure would be every other figure's, too.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Inside HTML the names of formats are known; the groups' names would be those of the page's other figures, too.
    for surplus in (r' xmlns(:\w+)?="[^"]*"', r'(?<=<g) id="[^"]*"', r"\n\s*"):
        svg = re.sub(surplus, "\n" if surplus.startswith(r"\n") else "", svg)
    # No smaller than words can be read; a still narrower screen shows it in a box that scrolls.
    least = f"min-width:{shape.pixels * figure.get_figwidth():.0f}px"
    width = f'class="{shape.name}" width="100%" style="{least}"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', width, svg.replace("xlink:href", "href"), count=1)


def _framed(drawings: str, title: str) -> str:
    """A figure with caption and words for those who cannot see it; on a narrow screen it scrolls in its own box."""
    drawings = drawings.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"')
    return f'<figure><figcaption>{escape(title)}</figcaption><div class="wide">{drawings}</div></figure>'
