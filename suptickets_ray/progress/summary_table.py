"""The result table: score and density of every network."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from suptickets_ray.metric import ACCURACY, Metric
from suptickets_ray.superposition.assessment import ensemble_size

ROWS: dict[str, str] = {
    "pretrained": "pretrained network",
    "mean_ticket": "mean ticket",
    "best_ticket": "best ticket (by validation)",
    "unpruned_mean": "mean of all tickets, not pruned",
    "superposed": "sup-ticket",
    "ensemble": "ensemble of all tickets",
}
"""Networks by their key in `result.json`, with their names for users."""


def result_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns name, validation score, test score and density of every network, as text."""
    rows, metric = [], Metric.of_result(result)
    for key, name in ROWS.items():
        network = result[key]
        density = f"{network['density']:.4f}" if "density" in network else ""
        if key == "ensemble":
            size = ensemble_size(result)
            density = "pretraining" if not size else f"{size} {'net' if size == 1 else 'nets'}"
        scores = (network[f"validation_{metric.name}"], network[metric.name])
        rows.append((name, metric.text(scores[0]), metric.text(scores[1]), density))
    return rows


def closing_table(result: dict[str, Any]) -> Table:
    """Returns the table that is printed after a run. The sup-ticket's row is bold."""
    accepted = sum(ticket["accepted"] for ticket in result["tickets"])
    metric = Metric.of_result(result)
    shown = "" if metric == ACCURACY else f"; {metric.title}, {'higher' if metric.mode == 'max' else 'lower'} is better"
    table = Table(title=f"{result['name']}: {accepted} of {len(result['tickets'])} tickets superposed{shown}")
    table.add_column("network")
    for column in ("validation", "test", "density"):
        table.add_column(column, justify="right")
    for row in result_rows(result):
        table.add_row(*row, style="bold" if row[0] == ROWS["superposed"] else None)
    return table
