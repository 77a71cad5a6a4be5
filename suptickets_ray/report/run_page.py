"""The report of a run as one self-contained HTML page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from suptickets_ray.metric import Metric
from suptickets_ray.progress.summary_table import ROWS, result_rows
from suptickets_ray.report.analysis import ONE_BASIN, PRETRAINED, SUP_TICKET, Findings
from suptickets_ray.report.figures import Series, dot_figure, lanes_figure, line_figure
from suptickets_ray.report.gantt import lanes_of
from suptickets_ray.report.heat_map import heat_map
from suptickets_ray.report.rendering import render
from suptickets_ray.superposition.assessment import Gain, assess, gain_over
from suptickets_ray.tickets.run_folder import CONFIG_FILE, TIMELINE_FILE
from suptickets_ray.tickets.store import child

_MAX_OPEN_ROWS = 20
"""Longer lists of tickets are collapsed."""


def render_report(
    result: Mapping[str, Any] | None,
    recipe: str,
    findings: Findings | None = None,
    timeline: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    path: str = "",
) -> str:
    """Returns the page of a run.

    Args:
        result: Content of `result.json`; None for an unfinished run.
        recipe: The resolved recipe as YAML.
        findings: The analysis of the tickets. None omits its sections.
        timeline: Content of `timeline.json`; None if it does not exist.
        name: The run's name, used without a result.
        path: The run's folder.
    """
    sections: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []
    if result is not None:
        sections.append(("Did superposing pay?", "networks", lambda: _networks(result)))
    if findings is not None:
        sections.append(("How different are the tickets?", "differences", lambda: _differences(findings)))
        sections.append(("Are the networks in one basin?", "basin", lambda: _basin(findings)))
    sections.append(("How long did each phase take?", "time", lambda: _time(result, timeline)))
    if result is not None:
        sections.append(("Tickets", "tickets", lambda: _tickets(result)))
    sections.append(
        ("How can the run be reproduced?", "reproduction", lambda: _reproduction(result, recipe, path)),
    )
    return str(
        render(
            "run.html",
            title=name if result is None else result["name"],
            assessment=None if result is None else assess(result),
            warnings=[] if result is None else result["warnings"],
            sections=[_section(*section) for section in sections],
        )
    )


def _section(heading: str, template: str, values: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the heading of a section with its content, or with the error that prevented it."""
    try:
        return {"heading": heading, "content": render(f"run/{template}.html", **values()), "failure": None}
    except Exception as error:  # noqa: BLE001 - no error of a section may prevent the page
        return {"heading": heading, "content": None, "failure": repr(error)}


def _signed(gain: Gain) -> str:
    error = "" if gain.error is None else f" ± {gain.metric.difference_text(gain.error)}"
    return f"{gain.metric.difference_text(gain.mean, sign='+')}{error}"


def _networks(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for (title, validation, test, density), key in zip(result_rows(dict(result)), ROWS, strict=True):
        gain = "" if key == "superposed" else _signed(gain_over(result, key))
        rows.append((title, test, gain, validation, density))
    metric = Metric.of_result(result)
    name, scale = metric.name, metric.scale
    dots = [Series(title, [scale * result[key][name]], (), key == "superposed") for key, title in ROWS.items()]
    dots.insert(1, Series("single tickets", [scale * ticket[name] for ticket in result["tickets"]]))
    figure = dot_figure(f"Test {metric.title} of every network", f"test {metric.axis}", dots)
    return {"rows": rows, "figure": figure, "metric": metric}


def _differences(findings: Findings) -> dict[str, Any]:
    pairs = findings.ticket_overlaps() if findings.overlaps else []
    overlaps = {"low": min(pairs), "high": max(pairs), "mean": sum(pairs) / len(pairs)} if pairs else {}
    return {
        "notes": findings.difference_notes,
        "overlaps": {name: f"{value:.0%}" for name, value in overlaps.items()},
        "chance": f"{findings.chance:.0%}" if findings.chance else "",
        "num_compared": sum(findings.is_ticket),
        "num_tickets": findings.num_tickets,
        "heat_map": heat_map("Overlap of the masks", findings.networks, findings.overlaps) if findings.overlaps else "",
        "densities": _densities(findings),
    }


def _densities(findings: Findings) -> dict[str, Any]:
    """Returns the figure and the table of the layers' densities; empty if these are unknown."""
    if not findings.densities or not (layers := list(findings.densities[0])):
        return {}
    named = zip(findings.networks, findings.is_ticket, findings.densities, strict=True)
    lines = [
        Series("tickets" if is_ticket else name, list(layer.values()), (), name == SUP_TICKET)
        for name, is_ticket, layer in named
    ]
    positions = list(range(len(layers)))
    return {
        "figure": line_figure("Density of every layer", "", "fraction of active weights", positions, lines, layers),
        "heads": ("layer", *findings.networks),
        "rows": [(layer, *(f"{densities[layer]:.4f}" for densities in findings.densities)) for layer in layers],
    }


def _basin(findings: Findings) -> dict[str, Any]:
    curves = findings.curves
    if not curves:
        return {"figure": "", "notes": findings.curve_notes}
    metric, lost = curves[0].metric, [curve.score_lost for curve in curves]
    unit = " percentage points" if metric.is_fraction else ""
    if not all(map(math.isfinite, [curve.barrier for curve in curves])):
        answer = "At least one of these networks has diverged, so there is no common basin."
    elif not metric.is_fraction:
        answer = f"The {metric.title} between two networks loses at most {metric.difference_text(max(lost))}."
    elif max(lost) < ONE_BASIN:
        amount = f"at most {metric.difference_text(max(lost))}{unit}" if max(lost) > 0 else "nothing"
        answer = f"Yes, on these lines: the {metric.title} between two networks loses {amount}."
    else:
        worst = metric.difference_text(max(lost))
        answer = f"No: the {metric.title} between two networks loses up to {worst}{unit}."
    lines = [
        Series(f"{curve.first} to {curve.second}", curve.losses, (), curve.first == PRETRAINED) for curve in curves
    ]
    title = "Validation loss on the straight line between two networks"
    return {
        "answer": answer,
        "metric": metric,
        "limit": f"{100 * ONE_BASIN:g}",
        "figure": line_figure(title, "weight of the second network", "loss (nats)", curves[0].alphas, lines),
        "rows": [
            (
                f"{curve.first} to {curve.second}",
                _finite(curve.losses[0], 4),
                _finite(curve.losses[-1], 4),
                _finite(curve.barrier, 4),
                metric.difference_text(curve.score_lost) if math.isfinite(curve.score_lost) else "-",
            )
            for curve in curves
        ],
        "num_examples": findings.num_examples,
        "notes": findings.curve_notes,
    }


def _finite(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _time(result: Mapping[str, Any] | None, timeline: Mapping[str, Any] | None) -> dict[str, Any]:
    values = {"seconds": None if result is None else _last_start(result["seconds"]), "lanes": None}
    if timeline is None:
        return values | {"reason": f"The run has no {TIMELINE_FILE}."}
    try:
        lanes = lanes_of(timeline)
        figure = lanes_figure("Timeline of pretraining, explorers and superposer", lanes) if lanes.lanes else ""
    except Exception as error:  # noqa: BLE001 - a damaged file must not prevent the page
        reason = f"The timeline cannot be drawn; {TIMELINE_FILE} is damaged or of another recipe: {error!r}."
        return values | {"reason": reason}
    return values | {"lanes": lanes, "figure": figure}


def _last_start(seconds: Mapping[str, float]) -> dict[str, str]:
    laps = {name: value for name, value in seconds.items() if name != "total"}
    total = seconds.get("total", sum(laps.values()))
    texts = [f"{name} {value:.1f} s" for name, value in laps.items()]
    # In results without a lap "start", the rest also contains the time of starting Ray.
    if "start" in laps:
        texts.append(f"shutdown of Ray {max(total - sum(laps.values()), 0.0):.1f} s")
    return {"total": f"{total:.1f}", "laps": ", ".join(texts)}


def _tickets(result: Mapping[str, Any]) -> dict[str, Any]:
    metric = Metric.of_result(result)
    rows = [
        (
            f"{ticket['chain']}.{ticket['cycle']}" + ("" if ticket["accepted"] else " (rejected)"),
            metric.text(ticket[f"validation_{metric.name}"]),
            metric.text(ticket[metric.name]),
            f"{ticket['density']:.4f}",
        )
        for ticket in result["tickets"]
    ]
    return {"rows": rows, "is_long": len(rows) > _MAX_OPEN_ROWS}


def _reproduction(result: Mapping[str, Any] | None, recipe: str, path: str) -> dict[str, Any]:
    source = shlex.quote(child(path, CONFIG_FILE) if path else CONFIG_FILE)
    return {"result": result, "recipe": recipe, "source": source}
