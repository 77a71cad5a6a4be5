"""Figures as SVG inside a page: they take the page's own text colour, so that they read well in dark mode too."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_COLOR = "#123457"
"""Stands for the page's text colour until the SVG is written."""
_ACCENT = "#d95f02"
_SIZE = (6.4, 3.2)


def error_bar_figure(
    title: str, xlabel: str, ylabel: str, xs: Sequence[Any], ys: Sequence[float], errors: Sequence[float | None]
) -> str:
    """Returns a figure of points with error bars, as an HTML figure; text values stand side by side."""
    figure, axes = _axes(xlabel, ylabel)
    places = list(range(len(xs))) if any(isinstance(x, str) for x in xs) else list(xs)
    axes.errorbar(places, ys, yerr=[error or 0.0 for error in errors], marker="o", color=_ACCENT, capsize=3)
    axes.set_xticks(places, [str(x) for x in xs])
    return _html(figure, title)


def bar_figure(title: str, xlabel: str, names: Sequence[str], values: Sequence[float]) -> str:
    """Returns a figure of horizontal bars, the first on top, as an HTML figure."""
    figure, axes = _axes(xlabel, "", height=max(1.2, 0.25 * len(names) + 0.8))
    axes.barh(range(len(names)), values, color=_ACCENT)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    return _html(figure, title)


def _axes(xlabel: str, ylabel: str, height: float = _SIZE[1]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, color=_COLOR)
    axes.set_ylabel(ylabel, color=_COLOR)
    axes.tick_params(colors=_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_COLOR)
    return figure, axes


def _html(figure: Figure, title: str) -> str:
    """The figure as inline SVG with its title as a caption; nothing in it is fetched from anywhere."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :].replace(_COLOR, "currentColor")
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
    return f"<figure><figcaption>{title}</figcaption>{svg}</figure>"
