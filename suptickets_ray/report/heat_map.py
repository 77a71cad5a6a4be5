"""A square matrix as an inline SVG with a number in each cell."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from suptickets_ray.report.rendering import render

_COLOR = "#d95f02"
_CELL = 40
"""Distance between two cells in pixels."""


def heat_map(title: str, names: Sequence[str], values: Sequence[Sequence[float]]) -> Markup:
    """Returns a square matrix as an HTML figure.

    Args:
        title: The caption, plain text.
        names: Names of the rows, which are also those of the columns.
        values: One row for each name. Colours range from the smallest to the largest value off the diagonal.
    """
    others = [value for row, line in enumerate(values) for column, value in enumerate(line) if row != column]
    low, high = min(others, default=0.0), max(others, default=1.0)
    longest = max(map(len, names), default=1)
    # Column names are slanted, because horizontal ones would overlap.
    left, top, right = 8 * longest + 12, 5 * longest + 16, 5 * longest
    width = left + _CELL * len(names) + right
    cells = [
        {
            "x": left + _CELL * column,
            "y": top + _CELL * row,
            "opacity": f"{_opacity(value, low, high, row == column):.2f}",
            "title": f"{names[row]}, {names[column]}: {value:.3f}",
            "text": f"{value:.2f}",
        }
        for row, line in enumerate(values)
        for column, value in enumerate(line)
    ]
    drawing = render(
        "heat_map.svg",
        title=title,
        left=left,
        top=top,
        width=width,
        height=top + _CELL * len(names) + 4,
        min_width=f"{min(0.75 * width, 18 * _CELL):g}",
        size=_CELL - 1,
        color=_COLOR,
        row_names=[{"y": top + _CELL * i + _CELL // 2 + 4, "text": name} for i, name in enumerate(names)],
        column_names=[{"x": left + _CELL * i + _CELL // 2, "text": name} for i, name in enumerate(names)],
        cells=cells,
    )
    return render("figure.html", title=title, drawings=[drawing])


def _opacity(value: float, low: float, high: float, is_diagonal: bool) -> float:
    """Returns the opacity of a cell. Never 1, so that the number in the page's text colour is readable in dark mode."""
    relative = (value - low) / (high - low) if high > low else 1.0
    return 0.08 if is_diagonal else 0.06 + 0.54 * min(max(relative, 0.0), 1.0)
