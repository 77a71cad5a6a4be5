"""The result of a search as a table for a terminal, and as an HTML page."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup
from rich.table import Table

from suptickets_ray.metric import Metric
from suptickets_ray.report.figures import bar_figure, error_bar_figure
from suptickets_ray.report.rendering import render

FIGURE_KEYS = {
    "tickets.cycle_epochs": "epochs of a cycle",
    "superposition.cima_factor": "CIMA's weight of the newest ticket",
    "superposition.method": "superposition",
}
"""Axis labels of keys in the figures. Other keys are labelled with their names."""


def search_table(result: dict[str, Any]) -> Table:
    """Returns the trials as a table for a terminal, best first. Only the best trial has a test score."""
    keys = _keys(result)
    table = Table(title=f"{result['name']}: {len(result['trials'])} trials")
    for key in keys:
        table.add_column(key.rpartition(".")[2])
    for column in ("validation", "s.e.", "test", "cycles trained", "seconds"):
        table.add_column(column, justify="right")
    for row in _best_first(result):
        is_best = row["trial"] == result["best"]["trial"]
        table.add_row(*_cells(result, row, keys), style="bold" if is_best else None)
    return table


def render_search(result: dict[str, Any]) -> str:
    """Returns the page of a search: the best point, the effect of each key, all trials, and their cost.

    Args:
        result: Content of `result.json`.
    """
    keys, metric = _keys(result), Metric.of_result(result)
    best = result["best"]
    values = ", ".join(f"{key} = {value}" for key, value in best["values"].items())
    return str(
        render(
            "search.html",
            title=result["name"],
            result=result,
            metric=metric,
            best=best,
            values=values,
            figures=_figures(result, keys),
            heads=[*keys, "validation", "s.e.", "test", "cycles trained", "seconds"],
            rows=[_cells(result, row, keys) for row in _best_first(result)],
        )
    )


def _figures(result: dict[str, Any], keys: list[str]) -> list[Markup]:
    # A diverged trial has no finite score to show.
    complete = [row for row in result["trials"] if row["state"] == "complete" and row[result["metric"]] is not None]
    figures = []
    for key in keys:
        groups: dict[Any, list[dict[str, Any]]] = {}
        for row in complete:
            if isinstance(value := row["values"].get(key), (int, float, str)):
                groups.setdefault(value, []).append(row)
        if len(groups) < 2:
            continue
        # The best trial for each value: the other trials vary the other keys.
        sign = -1 if result["mode"] == "max" else 1
        best = {value: min(rows, key=lambda row: sign * row[result["metric"]]) for value, rows in groups.items()}
        ordered = sorted(best, key=lambda value: (isinstance(value, str), value))
        figures.append(
            error_bar_figure(
                f"Best {result['metric'].replace('_', ' ')} by {key}",
                FIGURE_KEYS.get(key, key),
                result["metric"].replace("_", " "),
                [str(value) if isinstance(value, str) else value for value in ordered],
                [best[value][result["metric"]] for value in ordered],
                [best[value]["standard_error"] for value in ordered],
            )
        )
    names = [f"trial {row['trial']}" for row in result["trials"]]
    figures.append(bar_figure("Cost of each trial", "seconds", names, [row["seconds"] for row in result["trials"]]))
    return figures


def _keys(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(key for row in result["trials"] for key in row["values"]))


def _best_first(result: dict[str, Any]) -> list[dict[str, Any]]:
    sign = -1 if result["mode"] == "max" else 1

    def rank(row: dict[str, Any]) -> tuple[bool, float]:
        value = row[result["metric"]]
        return row["state"] != "complete", math.inf if value is None else sign * value

    return sorted(result["trials"], key=rank)


def _cells(result: dict[str, Any], row: dict[str, Any], keys: list[str]) -> list[str]:
    best, metric = result["best"], Metric.of_result(result)
    error, shown = row["standard_error"], metric.text(row[f"validation_{metric.name}"])
    return [
        *(str(row["values"].get(key, "")) for key in keys),
        shown if row["state"] == "complete" else f"{shown} ({row['state']})".strip(),
        "" if error is None else f"{error:.4f}",
        metric.text(best[metric.name]) if row["trial"] == best["trial"] else "",
        str(row["cycles_trained"]),
        f"{row['seconds']:.1f}",
    ]
