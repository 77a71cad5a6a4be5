"""The results of a search: trials ranked with their standard errors, and whether the best one leads beyond noise."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from suptickets_ray.search.points import Point

Row = dict[str, Any]


def trial_row(
    number: int,
    point: Point,
    seeds: Sequence[Mapping[str, Any]],
    metric: str,
    state: str,
    keys: Sequence[str] = ("validation_accuracy", "validation_loss"),
) -> Row:
    """Returns the row of a trial: its values, the metric's mean and standard error over seeds, and its cost.

    Args:
        number: Number of the trial, from 0.
        point: Its values.
        seeds: The stored row of each seed; the latest scores of a stopped trial.
        metric: The metric that trials are compared by.
        state: "complete", "stopped" or "failed".
        keys: Keys of all scores.
    """
    scores = {key: [_number(seed[key]) for seed in seeds if key in seed] for key in keys}
    values = scores[metric]
    has_error = len(values) > 1 and all(map(math.isfinite, values))
    error = statistics.stdev(values) / math.sqrt(len(values)) if has_error else None
    return {
        "trial": number,
        "state": state,
        "values": dict(point),
        # Null if any seed has diverged: the mean over the other seeds would overestimate the point.
        **{key: _finite(statistics.fmean(found)) if found else None for key, found in scores.items()},
        "standard_error": error,
        "seeds": len(values),
        "cycles_trained": sum(int(seed.get("cycles_trained", 0)) for seed in seeds),
        "seconds": round(sum(float(seed.get("seconds", 0.0)) for seed in seeds), 3),
        "digest": seeds[0].get("digest") if seeds else None,
    }


def _number(value: Any) -> float:
    """Returns a score. A diverged one is NaN, which is stored as null because JSON has no NaN."""
    return math.nan if value is None else float(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def ranked(rows: Sequence[Row], metric: str, mode: str) -> list[Row]:
    """Returns the complete trials, best first. Equal trials keep their order."""
    sign = -1 if mode == "max" else 1
    complete = [row for row in rows if row["state"] == "complete" and row[metric] is not None]
    return sorted(complete, key=lambda row: sign * row[metric])


def noise_warning(best_first: Sequence[Row], metric: str) -> str | None:
    """Returns a warning if the best trial is not clearly better than the second, else None.

    Clearly better means a lead of more than two standard errors of the difference, with at least two seeds each.
    """
    if len(best_first) < 2:
        return None
    best, second = best_first[:2]
    difference = abs(best[metric] - second[metric])
    lead = f"the best trial leads the second by {difference:.4f} in {metric}"
    if best["standard_error"] is None or second["standard_error"] is None:
        return f"{lead}, with one seed each: this may be noise. To find out, set search.num_seeds=5."
    error = math.hypot(best["standard_error"], second["standard_error"])
    if difference > 2 * error:
        return None
    return f"{lead}, which is within noise: the standard error of the difference is {error:.4f}."


def budget_warning(cyclic_epochs: Mapping[int, int]) -> str | None:
    """Returns a warning if the cycle lengths get different totals of epochs, else None.

    Args:
        cyclic_epochs: Cycle length to the total epochs of its cycles.
    """
    if len(set(cyclic_epochs.values())) < 2:
        return None
    listed = ", ".join(f"{length}: {total}" for length, total in sorted(cyclic_epochs.items()))
    return (
        f"the comparison of cycle lengths is not fair: the total epochs of the cycles are {listed}. Make train.epochs "
        "* tickets.cycle_rate a multiple of all lengths, e.g. 24. Pretraining is then shared, too."
    )


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Returns the trials as a Parquet file. Each key of the space is a column: numbers, text, or else JSON text."""
    keys = sorted({key for row in rows for key in row["values"]})
    columns: dict[str, list[Any]] = {}
    for key in keys:
        values = [row["values"].get(key) for row in rows]
        numbers = all(
            value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values
        )
        texts = all(value is None or isinstance(value, str) for value in values)
        columns[key] = values if numbers or texts else [json.dumps(value) for value in values]
    for key in rows[0] if rows else ():
        if key != "values":
            columns[key] = [row[key] for row in rows]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()
