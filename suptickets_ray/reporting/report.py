"""A run's result as one self-contained HTML page."""

from __future__ import annotations

from html import escape
from typing import Any

from suptickets_ray.reporting.table import result_rows

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 46rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .5rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; border: 1px solid #8886; padding: 1rem; }
.wide { overflow-x: auto; }
figure { margin: 1.5rem 0; }
figure svg { max-width: 100%; height: auto; }
.warning { border-left: .3rem solid #d33; padding-left: 1rem; }
"""


def render_report(result: dict[str, Any], recipe: str) -> str:
    """Returns the page.

    Args:
        result: What `result.json` holds.
        recipe: The resolved recipe as YAML.
    """
    warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in result["warnings"])
    tickets = [
        (
            f"chain {ticket['chain']}, cycle {ticket['cycle']}" + ("" if ticket["accepted"] else " (left out)"),
            f"{ticket['validation_accuracy']:.2%}",
            f"{ticket['accuracy']:.2%}",
            f"{ticket['density']:.4f}",
        )
        for ticket in result["tickets"]
    ]
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in result["seconds"].items())
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    return page(
        result["name"],
        f"{warnings}"
        f"{_table('network', result_rows(result))}<h2>Tickets</h2>{_table('ticket', tickets)}"
        f"<h2>Time</h2><p>{escape(seconds)}</p><h2>Recipe</h2><pre>{escape(recipe)}</pre>"
        f"<p>Digest of the sup-ticket: <code>{escape(result['superposed']['digest'])}</code><br>{escape(versions)}</p>",
    )


def page(title: str, body: str) -> str:
    """Returns a whole page that opens from disk and fetches nothing."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}"
        "</body></html>"
    )


def _table(first_column: str, rows: list[tuple[str, str, str, str]]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in (first_column, "validation", "test", "density"))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
