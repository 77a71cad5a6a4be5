"""Figures as inline SVG. They use the page's text colour, so that they are readable in dark mode too."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from suptickets_ray.report.gantt import Lanes
from suptickets_ray.report.rendering import render

_COLOR = "#123457"
"""Placeholder for the page's text colour; replaced in the SVG."""
_ACCENT = "#d95f02"
_COLORS = (_ACCENT, "#1b9e77", "#8580c9", "#e7298a", "#66a61e", "#c99700", "#a6761d", "#808080")
"""ColorBrewer's Dark2 with two lighter colours, so that all are visible on a white and on a black page."""
_HEIGHT = 3.2
_MAX_LABEL = 36
"""Maximum length of a label in characters."""


@dataclass(frozen=True)
class _Layout:
    """Size of a figure for one kind of screen. The page contains both layouts and shows one of them."""

    name: str
    """CSS class in the page's style."""
    width: float
    """Minimum width in inches."""
    pixels: int
    """Minimum pixels per inch, so that text is readable."""

    @property
    def is_narrow(self) -> bool:
        return self.name == "phone"


_DESK, _PHONE = _Layout("desk", 6.4, 84), _Layout("phone", 3.9, 80)


@dataclass(frozen=True)
class Series:
    """Named points with errors. A missing value or error is None."""

    name: str
    ys: Sequence[float | None]
    errors: Sequence[float | None] = ()
    is_highlighted: bool = False
    color: int = 0
    """Index of the colour in `series_figure`, so that a series has one colour in all figures of a page."""


def error_bar_figure(
    title: str, xlabel: str, ylabel: str, xs: Sequence[Any], ys: Sequence[float], errors: Sequence[float | None]
) -> Markup:
    """Returns an HTML figure of points with error bars. If any x is text, all x are evenly spaced."""

    def draw(layout: _Layout) -> Figure:
        figure, axes = _axes(xlabel, ylabel, layout)
        positions = list(range(len(xs))) if any(isinstance(x, str) for x in xs) else list(xs)
        axes.errorbar(positions, ys, yerr=[error or 0.0 for error in errors], marker="o", color=_ACCENT, capsize=3)
        axes.set_xticks(positions, [_label(x) for x in xs])
        return figure

    return _html(draw, title)


def bar_figure(title: str, xlabel: str, names: Sequence[str], values: Sequence[float]) -> Markup:
    """Returns an HTML figure of horizontal bars, the first on top."""

    def draw(layout: _Layout) -> Figure:
        figure, axes = _axes(xlabel, "", layout, height=max(1.2, 0.25 * len(names) + 0.8))
        axes.barh(range(len(names)), values, color=_ACCENT)
        axes.set_yticks(range(len(names)), [_label(name) for name in names])
        axes.invert_yaxis()
        return figure

    return _html(draw, title)


def line_figure(
    title: str, xlabel: str, ylabel: str, xs: Sequence[float], lines: Sequence[Series], names: Sequence[str] = ()
) -> Markup:
    """Returns an HTML figure of lines with common x values.

    Args:
        title: The caption, plain text.
        xlabel: Label of the x axis.
        ylabel: Label of the y axis.
        xs: The x values, ascending.
        lines: One y value for each x. A highlighted line is thick and has the first colour. Lines with the same name
            are adjacent, share a colour, and have one legend entry.
        names: Names of the x values, if these are categories. Points are then not connected. If there are too many
            names, only some are drawn.
    """

    def draw(layout: _Layout) -> Figure:
        figure, axes = _axes(xlabel, ylabel, layout)
        colors: dict[str, str] = {}
        for line in lines:
            is_new = line.name not in colors
            next_color = _COLORS[1 + len([name for name in colors if name]) % (len(_COLORS) - 1)]
            color = colors.setdefault(line.name, _ACCENT if line.is_highlighted else next_color)
            style: dict[str, Any] = {"linewidth": 2.5, "zorder": 3} if line.is_highlighted else {"linewidth": 1.2}
            mark: dict[str, Any] = {"marker": "o", "markersize": 3}
            if names:
                # Highlighted points have a wide marker, which is visible even below others.
                mark = {"linestyle": "", "marker": "_" if line.is_highlighted else "o", "markeredgewidth": 2}
                mark["markersize"] = 13 if line.is_highlighted else 3
            label = _label(line.name) if is_new else "_nolegend_"
            axes.plot(xs, [_number(y) for y in line.ys], color=color, label=label, **style, **mark)
        if names:
            step = -(-len(names) // (12 if layout.is_narrow else 24))
            axes.set_xticks(list(xs)[::step], [_label(name) for name in names[::step]], rotation=40, ha="right")
        _legend(axes, len(colors), layout)
        return figure

    return _html(draw, title)


def dot_figure(title: str, xlabel: str, rows: Sequence[Series]) -> Markup:
    """Returns an HTML figure with a row of dots for each name, the first on top.

    Args:
        title: The caption, plain text.
        xlabel: Label of the x axis.
        rows: The values of each name, paler if there are several, with error bars if there are errors.
    """

    def draw(layout: _Layout) -> Figure:
        figure, axes = _axes(xlabel, "", layout, height=max(1.2, 0.3 * len(rows) + 0.8))
        for position, row in enumerate(rows):
            color = _ACCENT if row.is_highlighted else _COLORS[2]
            errors = [_number(error, 0.0) for error in row.errors] if any(row.errors) else None
            values = [_number(y) for y in row.ys]
            alpha = 0.5 + 0.5 / len(values)
            positions = [position] * len(values)
            axes.errorbar(values, positions, xerr=errors, fmt="o", capsize=3, color=color, alpha=alpha)
        axes.set_yticks(range(len(rows)), [_label(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", color="#888888", alpha=0.3)
        return figure

    return _html(draw, title)


def series_figure(title: str, ylabel: str, groups: Sequence[str], series: Sequence[Series]) -> Markup:
    """Returns an HTML figure of points with error bars, grouped along the x axis.

    Args:
        title: The caption, plain text.
        ylabel: Label of the y axis.
        groups: Names of the groups along the x axis.
        series: Series with one value and one error for each group.
    """

    def draw(layout: _Layout) -> Figure:
        figure, axes = _axes("", ylabel, replace(layout, width=max(layout.width, 1.1 * len(groups) + 2)))
        for index, row in enumerate(series):
            shift = 0.6 * ((index + 0.5) / len(series) - 0.5)
            color = _ACCENT if row.is_highlighted else _COLORS[1 + row.color % (len(_COLORS) - 1)]
            errors = [_number(error, 0.0) for error in row.errors]
            positions = [position + shift for position in range(len(groups))]
            values = [_number(y) for y in row.ys]
            axes.errorbar(positions, values, yerr=errors, fmt="o", capsize=3, color=color, label=_label(row.name))
        is_crowded = len(groups) * max(map(len, groups), default=0) > 7 * layout.width
        rotation = {"rotation": 25, "ha": "right"} if is_crowded else {}
        axes.set_xticks(range(len(groups)), [_label(group) for group in groups], **rotation)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.grid(axis="y", color="#888888", alpha=0.3)
        _legend(axes, len(series), layout)
        return figure

    return _html(draw, title)


def lanes_figure(title: str, lanes: Lanes) -> Markup:
    """Returns the timeline of a run as an HTML figure: a lane for each process, a dashed line for each restart."""

    def draw(layout: _Layout) -> Figure:
        figure, axes = _axes("seconds", "", layout, height=0.28 * len(lanes.lanes) + 0.9)
        min_label_seconds = 0.25 / layout.width * max(lanes.seconds, 1e-9)
        for position, lane in enumerate(lanes.lanes):
            for bar in lane.bars:
                color = _COLORS[0] if bar.chain is None else _COLORS[1 + bar.chain % (len(_COLORS) - 1)]
                # A minimum width makes short bars visible, and the edge separates adjacent bars.
                width = max(bar.seconds, 0.002 * lanes.seconds)
                axes.barh(position, width, left=bar.began, height=0.7, color=color, edgecolor="#8888", linewidth=0.4)
                if bar.text and bar.seconds >= min_label_seconds:
                    middle = bar.began + bar.seconds / 2
                    axes.text(middle, position, bar.text, ha="center", va="center", fontsize=7, color="black")
        for restart in lanes.restarts:
            axes.axvline(restart, color=_COLOR, linestyle="--", linewidth=1.2)
        axes.set_yticks(range(len(lanes.lanes)), [_label(lane.name) for lane in lanes.lanes])
        axes.set_ylim(len(lanes.lanes) - 0.4, -0.6)
        axes.set_xlim(0, max(lanes.seconds, 1e-9) * 1.01)
        return figure

    return _html(draw, title)


def _axes(xlabel: str, ylabel: str, layout: _Layout, height: float = _HEIGHT) -> tuple[Figure, Any]:
    figure = Figure(figsize=(layout.width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(_label(xlabel), color=_COLOR)
    axes.set_ylabel(_label(ylabel), color=_COLOR)
    axes.tick_params(colors=_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_COLOR)
    return figure, axes


def _legend(axes: Any, num_names: int, layout: _Layout) -> None:
    """Adds a legend outside the axes, where it hides no points: to the right, or above in a narrow layout."""
    if num_names > 1:
        location: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        if layout.is_narrow:
            location = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 1}
        axes.legend(frameon=False, labelcolor=_COLOR, fontsize=8, **location)


def _label(text: Any) -> str:
    """Returns text shortened to a label. Dollar signs are escaped, because matplotlib reads them as formulas."""
    label = str(text)
    return (label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…").replace("$", r"\$")


def _number(value: float | None, default: float = math.nan) -> float:
    return default if value is None else value


def _html(draw: Callable[[_Layout], Figure], title: str) -> Markup:
    """Returns the figure in both layouts as inline SVG, with its title as the caption."""
    drawings = [_svg(draw(layout), title, layout) for layout in (_DESK, _PHONE)]
    return render("figure.html", title=title, drawings=drawings)


def _svg(figure: Figure, title: str, layout: _Layout) -> Markup:
    """Returns the figure as SVG without external references, with an accessible label. Matplotlib escapes its text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title + layout.name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :].replace(_COLOR, "currentColor")
    # Removed, because a <style> in one figure applies to the whole page. The page's style sets line joins.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Inline SVG needs no namespaces, and group ids would be repeated in other figures of the page.
    for surplus in (r' xmlns(:\w+)?="[^"]*"', r'(?<=<g) id="[^"]*"', r"\n\s*"):
        svg = re.sub(surplus, "\n" if surplus.startswith(r"\n") else "", svg)
    # A minimum width keeps text readable; on a narrower screen the figure scrolls in its box.
    min_width = f"min-width:{layout.pixels * figure.get_figwidth():.0f}px"
    attributes = f'class="{layout.name}" width="100%" style="{min_width}"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', attributes, svg.replace("xlink:href", "href"), count=1)
    label = Markup('<svg role="img" aria-label="{}"').format(title)
    return label + Markup(svg.removeprefix("<svg"))  # noqa: S704 - drawn by matplotlib
