"""What came of a search: points ranked, with their error, and whether the best is better than noise."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from suptickets_ray.search.space import Point

Row = dict[str, Any]


def trial_row(number: int, point: Point, seeds: Sequence[Mapping[str, Any]], metric: str, state: str) -> Row:
    """Returns a trial's line: its values, mean and standard error of the metric over seeds, and what it cost.

    Args:
        number: The trial, from 0.
        point: Its values.
        seeds: What the trial kept for each of its seeds; of a trial that was stopped, what was last known.
        metric: What is compared.
        state: "complete", "stopped" or "failed".
    """
    keys = ("validation_accuracy", "validation_loss")
    scores = {key: [_number(seed[key]) for seed in seeds if key in seed] for key in keys}
    values = scores[metric]
    whole = len(values) > 1 and all(map(math.isfinite, values))
    error = statistics.stdev(values) / math.sqrt(len(values)) if whole else None
    return {
        "trial": number,
        "state": state,
        "values": dict(point),
        # The mean over some of the seeds, without one that has diverged, would flatter the point.
        **{key: _finite(statistics.fmean(found)) if found else None for key, found in scores.items()},
        "standard_error": error,
        "seeds": len(values),
        "cycles_trained": sum(int(seed.get("cycles_trained", 0)) for seed in seeds),
        "seconds": round(sum(float(seed.get("seconds", 0.0)) for seed in seeds), 3),
        "digest": seeds[0].get("digest") if seeds else None,
    }


def _number(value: Any) -> float:
    """A score; of one that has diverged, which JSON does not know, NaN."""
    return math.nan if value is None else float(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def ranked(rows: Sequence[Row], metric: str, mode: str) -> list[Row]:
    """Returns the complete trials, the best first; of equals the earlier one."""
    sign = -1 if mode == "max" else 1
    complete = [row for row in rows if row["state"] == "complete" and row[metric] is not None]
    return sorted(complete, key=lambda row: sign * row[metric])


def noise_warning(best_first: Sequence[Row], metric: str) -> str | None:
    """Returns a sentence where the best trial is not clearly better than the next, None where it is.

    Clear means: by more than two standard errors of the difference, over at least two seeds each.
    """
    if len(best_first) < 2:
        return None
    best, second = best_first[:2]
    difference = abs(best[metric] - second[metric])
    lead = f"the best trial leads the next by {difference:.4f} of {metric}"
    if best["standard_error"] is None or second["standard_error"] is None:
        return f"{lead}, with one seed each: that may be noise. search.num_seeds=5 tells."
    error = math.hypot(best["standard_error"], second["standard_error"])
    if difference > 2 * error:
        return None
    return f"{lead}, which is within noise: the standard error of that difference is {error:.4f}."


def budget_warning(cyclic_epochs: Mapping[int, int]) -> str | None:
    """Returns a sentence where cycle lengths get different numbers of epochs in all, None where they compare fairly.

    Args:
        cyclic_epochs: Cycle length to the epochs of all its cycles.
    """
    if len(set(cyclic_epochs.values())) < 2:
        return None
    listed = ", ".join(f"{length}: {total}" for length, total in sorted(cyclic_epochs.items()))
    return (
        f"cycle lengths do not compare fairly: the epochs of all cycles are {listed}. With a budget that all lengths "
        "divide (train.epochs * tickets.cycle_rate, e.g. 24) they do, and pretraining is shared."
    )


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Returns the trials as a Parquet file: a column for each key of the space; what is no number is JSON."""
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
