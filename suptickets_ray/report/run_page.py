"""The report of a run as one self-contained HTML page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from suptickets_ray.progress.summary_table import ROWS, result_rows
from suptickets_ray.report.analysis import ONE_BASIN, PRETRAINED, SUP_TICKET, Findings
from suptickets_ray.report.figures import Series, dot_figure, heat_map, lanes_figure, line_figure
from suptickets_ray.report.gantt import Lanes, lanes_of
from suptickets_ray.superposition.assessment import Gain, assess, gain_over
from suptickets_ray.tickets.run_folder import CONFIG_FILE
from suptickets_ray.tickets.store import child

_MAX_OPEN_ROWS = 20
"""Longer lists of tickets are collapsed."""
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1b1f; --line: #8886; }
@media (prefers-color-scheme: dark) { :root { --page: #16181d; --text: #e6e6ea; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 52rem; padding: 0 1rem;
  background: var(--page); color: var(--text); overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td:not(:first-child) { white-space: nowrap; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: 1rem; }
.wide { overflow-x: auto; background:  /* shadows at the edges of content that scrolls */
  linear-gradient(to right, var(--page) 40%, transparent) 0 0 / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--page) 40%, transparent) 100% 0 / 3rem 100% no-repeat local,
  radial-gradient(farthest-side at 0 50%, #888a, transparent) 0 0 / .8rem 100% no-repeat scroll,
  radial-gradient(farthest-side at 100% 50%, #888a, transparent) 100% 0 / .8rem 100% no-repeat scroll; }
.phone { display: none !important; }
@media (max-width: 600px) {
  .desk { display: none !important; }
  .phone { display: block !important; }
  table { font-size: .85rem; }
  th, td { padding: .25rem .3rem; }
}
figure { margin: 1.5rem 0; }
figcaption { font-weight: 600; }
figure svg { display: block; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.assessment { font-size: 1.2rem; border-left: .3rem solid #8888; padding-left: 1rem; }
.assessment.gain { border-color: #1b9e77; }
.assessment.loss { border-color: #d95f02; }
.warning { border-left: .3rem solid #d33; padding-left: 1rem; }
.note { border-left: .3rem solid #c90; padding-left: 1rem; }
"""


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
    sections: list[tuple[str, Callable[[], str]]] = []
    if result is None:
        body = '<p class="assessment">This run is not finished. Run the same command again to resume it.</p>'
    else:
        assessment = assess(result)
        body = f'<p class="assessment {assessment.outcome}">{escape(assessment.sentence)}</p>'
        body += "".join(f'<p class="warning">{escape(warning)}</p>' for warning in result["warnings"])
        sections.append(("Did superposing pay?", lambda: _networks(result)))
    if findings is not None:
        sections.append(("How different are the tickets?", lambda: _differences(findings)))
        sections.append(("Are the networks in one basin?", lambda: _basin(findings)))
    sections.append(("How long did each phase take?", lambda: _time(result, timeline)))
    if result is not None:
        sections.append(("Tickets", lambda: _tickets(result)))
    sections.append(("How can the run be reproduced?", lambda: _reproduction(result, recipe, path)))
    for heading, make in sections:
        body += f"<h2>{heading}</h2>"
        try:
            body += make()
        except Exception as error:  # noqa: BLE001 - no error of a section may prevent the page
            body += note(f"This section could not be rendered: {error!r}.")
    return page(name if result is None else result["name"], body)


def page(title: str, body: str) -> str:
    """Returns a complete page without external resources, so that it can be opened from disk."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}"
        "</body></html>"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table of plain text. A table that is too wide scrolls in its box."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def note(text: str) -> str:
    """Returns a paragraph about a missing part and the reason."""
    return f'<p class="note">{escape(text)}</p>'


def _signed(gain: Gain) -> str:
    error = "" if gain.error is None else f" ± {100 * gain.error:.2f}"
    return f"{100 * gain.mean:+.2f}{error}"


def _networks(result: Mapping[str, Any]) -> str:
    rows = []
    for (name, validation, test, density), key in zip(result_rows(dict(result)), ROWS, strict=True):
        gain = "" if key == "superposed" else _signed(gain_over(result, key))
        rows.append((name, test, gain, validation, density))
    dots = [Series(name, [100 * result[key]["accuracy"]], (), key == "superposed") for key, name in ROWS.items()]
    dots.insert(1, Series("single tickets", [100 * ticket["accuracy"] for ticket in result["tickets"]]))
    return (
        f"{table(('network', 'test', 'gain (points)', 'validation', 'density'), rows)}"
        f"{dot_figure('Test accuracy of every network', 'test accuracy (%)', dots)}"
        "<p>The gain is the sup-ticket's test accuracy minus the network's, ± its standard error over the test "
        "examples. The best ticket is the one with the highest validation accuracy. This error excludes the variation "
        "over seeds: to see it, run suptickets report with the folders of runs with several seeds.</p>"
    )


def _differences(findings: Findings) -> str:
    parts = [*map(note, findings.difference_notes)]
    tickets = sum(findings.is_ticket)
    if findings.overlaps:
        pairs = findings.ticket_overlaps()
        text = ""
        if pairs:
            text = (
                f"Two tickets share {min(pairs):.0%} to {max(pairs):.0%} of their active positions, "
                f"{sum(pairs) / len(pairs):.0%} on average"
            )
            chance = findings.chance
            text += f"; random masks of the same densities would share {chance:.0%}. " if chance else ". "
        if tickets < findings.num_tickets:
            text += f"{tickets} evenly spaced tickets of {findings.num_tickets} are compared. "
        text += (
            "A ticket's name is chain.cycle. The overlap is the number of positions active in both networks, divided "
            "by the number active in either."
        )
        parts += [f"<p>{text}</p>", heat_map("Overlap of the masks", findings.networks, findings.overlaps)]
    if findings.densities and (layers := list(findings.densities[0])):
        named = zip(findings.networks, findings.is_ticket, findings.densities, strict=True)
        lines = [
            Series("tickets" if is_ticket else name, list(layer.values()), (), name == SUP_TICKET)
            for name, is_ticket, layer in named
        ]
        positions = list(range(len(layers)))
        rows = [(layer, *(f"{densities[layer]:.4f}" for densities in findings.densities)) for layer in layers]
        parts.append(line_figure("Density of every layer", "", "fraction of active weights", positions, lines, layers))
        numbers = table(("layer", *findings.networks), rows)
        parts.append(f"<details><summary>Densities as a table</summary>{numbers}</details>")
    return "".join(parts)


def _basin(findings: Findings) -> str:
    parts = []
    if curves := findings.curves:
        lost = [curve.accuracy_lost for curve in curves]
        if not all(map(math.isfinite, [curve.barrier for curve in curves])):
            answer = "At least one of these networks has diverged, so there is no common basin."
        elif max(lost) < ONE_BASIN:
            amount = f"at most {100 * max(lost):.2f} percentage points" if max(lost) > 0 else "nothing"
            answer = f"Yes, on these lines: the accuracy between two networks loses {amount}."
        else:
            answer = f"No: the accuracy between two networks loses up to {100 * max(lost):.2f} percentage points."
        lines = [
            Series(f"{curve.first} to {curve.second}", curve.losses, (), curve.first == PRETRAINED) for curve in curves
        ]
        rows = [
            (
                f"{curve.first} to {curve.second}",
                _finite(curve.losses[0], 4),
                _finite(curve.losses[-1], 4),
                _finite(curve.barrier, 4),
                _finite(100 * curve.accuracy_lost, 2),
            )
            for curve in curves
        ]
        heads = ("line", "loss at its start", "at its end", "barrier", "accuracy lost (points)")
        title = "Validation loss on the straight line between two networks"
        parts += [
            f"<p>{answer} Networks are in one basin if the accuracy loses less than {100 * ONE_BASIN:g} percentage "
            "points (1912.05671, section 2).</p>",
            line_figure(title, "weight of the second network", "loss (nats)", curves[0].alphas, lines),
            table(heads, rows),
            f"<p>Weights are interpolated without pruning, and evaluated on {findings.num_examples} validation "
            "examples. BatchNorm statistics, if any, are computed as for the sup-ticket, also at the ends. The barrier "
            "is the maximum height of the loss above the straight line between the losses at the ends.</p>",
        ]
    return "".join([*parts, *map(note, findings.curve_notes)])


def _finite(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _time(result: Mapping[str, Any] | None, timeline: Mapping[str, Any] | None) -> str:
    parts = []
    if result is not None:
        laps = {name: value for name, value in result["seconds"].items() if name != "total"}
        total = result["seconds"].get("total", sum(laps.values()))
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in laps.items())
        # In results without a lap "start", the rest also contains the time of starting Ray.
        rest = f", shutdown of Ray {max(total - sum(laps.values()), 0.0):.1f} s" if "start" in laps else ""
        parts.append(f"<p>The last start took {total:.1f} s: {escape(seconds)}{escape(rest)}.</p>")
    if timeline is None:
        return "".join([*parts, note("The run has no timeline.json.")])
    try:
        lanes = lanes_of(timeline)
        drawn = lanes_figure("Timeline of pretraining, explorers and superposer", lanes) if lanes.lanes else ""
    except Exception as error:  # noqa: BLE001 - a damaged file must not prevent the page
        return "".join(
            [*parts, note(f"The timeline cannot be drawn; timeline.json is damaged or of another recipe: {error!r}.")]
        )
    return "".join([*parts, f"<p>{escape(_timeline_text(lanes))}</p>", drawn])


def _timeline_text(lanes: Lanes) -> str:
    text = f"All starts together took {lanes.seconds:.1f} s. "
    if lanes.num_cycles:
        text += (
            f"{lanes.num_cycles} cycles ran on {lanes.num_explorers} explorer processes, at most "
            f"{lanes.max_concurrent} and on average {lanes.mean_concurrent:.1f} at the same time. The label of a "
            "cycle's bar is chain.cycle, and its colour shows the chain. "
        )
    if lanes.restarts:
        times = "once" if len(lanes.restarts) == 1 else f"{len(lanes.restarts)} times"
        text += f"The run was restarted {times}, at the dashed lines; the pauses before restarts are omitted. "
    if lanes.num_hidden:
        text += f"{lanes.num_hidden} bars are not shown, because there are too many. "
    return text + "Brackets contain the node and the process."


def _tickets(result: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{ticket['chain']}.{ticket['cycle']}" + ("" if ticket["accepted"] else " (rejected)"),
            f"{ticket['validation_accuracy']:.2%}",
            f"{ticket['accuracy']:.2%}",
            f"{ticket['density']:.4f}",
        )
        for ticket in result["tickets"]
    ]
    numbers = table(("ticket", "validation", "test", "density"), rows)
    if len(rows) > _MAX_OPEN_ROWS:
        numbers = f"<details><summary>All {len(rows)} tickets</summary>{numbers}</details>"
    return f"<p>A ticket's name is chain.cycle.</p>{numbers}"


def _reproduction(result: Mapping[str, Any] | None, recipe: str, path: str) -> str:
    source = shlex.quote(child(path, CONFIG_FILE) if path else CONFIG_FILE)
    facts = [f"Command: <code>suptickets train {escape(source)} name=again</code>"]
    if result is not None:
        facts.append(f"Digest of the sup-ticket: <code>{escape(result['superposed']['digest'])}</code>")
        if digest := result.get("config_digest"):
            facts.append(f"Digest of the settings: <code>{escape(digest)}</code>")
        facts.append("Versions: " + escape(", ".join(f"{name} {value}" for name, value in result["versions"].items())))
    return f"<p>{'<br>'.join(facts)}</p><h3>Recipe</h3><pre>{escape(recipe)}</pre>"
