"""Compares several runs on one page. Runs that differ only in their seed are one row, with a standard error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from suptickets_ray.config import Config
from suptickets_ray.metric import Metric
from suptickets_ray.progress.summary_table import ROWS
from suptickets_ray.recipes.load import changes_results, differing_keys, flatten, to_dict
from suptickets_ray.report.figures import Series, series_figure
from suptickets_ray.report.rendering import render
from suptickets_ray.superposition.assessment import Gain, Outcome, conclusion, gain_over

_BASELINES = ("pretrained", "mean_ticket", "best_ticket", "ensemble")
"""Networks that the sup-ticket is compared with, within each run."""
Estimate = tuple[float, float | None]
"""A mean and its standard error. The error of a single value is None."""


@dataclass(frozen=True)
class ComparedRun:
    """The parts of a finished run that a comparison needs."""

    path: str
    config: Config
    result: Mapping[str, Any]
    """Content of `result.json`."""
    overlap: float | None
    """Mean overlap of two tickets' masks; None if it could not be computed."""


def group_runs(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Groups runs that differ only in seed, name and placement, and keeps their order.

    Raises:
        ValueError: If two runs of a group have the same result, because errors would then be underestimated.
    """
    groups: list[list[ComparedRun]] = []
    for run in runs:
        for group in groups:
            if set(differing_keys(group[0].config, run.config)) <= {"seed"}:
                for other in group:
                    if run.result["superposed"]["digest"] == other.result["superposed"]["digest"]:
                        raise ValueError(
                            f"runs must be distinct; got {run.path} and {other.path}, which have the same recipe and "
                            "the same result. Leave one out."
                        )
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def group_names(groups: Sequence[Sequence[ComparedRun]]) -> list[str]:
    """Returns a name for each group: its settings that differ between groups, or else the name of its first run."""
    settings = [dict(flatten(to_dict(group[0].config))) for group in groups]
    keys = sorted({key for values in settings for key in values if changes_results(key) and key != "seed"})
    differing = [key for key in keys if any(values.get(key) != settings[0].get(key) for values in settings)]
    leaf_counts = Counter(key.rpartition(".")[2] for key in differing)

    def short(key: str) -> str:
        leaf = key.rpartition(".")[2]
        return leaf if leaf_counts[leaf] == 1 else key

    names = [", ".join(f"{short(key)}={values[key]}" for key in differing if key in values) for values in settings]
    return [name or group[0].config.name for name, group in zip(names, groups, strict=True)]


def mean_and_error(values: Sequence[float]) -> Estimate:
    """Returns the mean and its standard error. The error of a single value is None."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def render_comparison(runs: Sequence[ComparedRun], notes: Sequence[str] = ()) -> str:
    """Returns the page that compares runs.

    Args:
        runs: Two or more finished runs.
        notes: Sentences about parts that could not be computed.

    Raises:
        ValueError: As `group_runs`.
    """
    metric = _common_metric(runs)
    groups = group_runs(runs)
    names = group_names(groups)
    scores = {key: [_estimate(group, lambda run, key=key: _test(run, key)) for group in groups] for key in ROWS}
    gains = {key: [_estimate(group, lambda run, key=key: _gain(run, key)) for group in groups] for key in _BASELINES}
    gain_heads = (f"gain over the {ROWS[key]}" for key in _BASELINES)
    heads = ("runs", "seeds", *ROWS.values(), *gain_heads, "overlap", "seconds")
    rows = []
    for index, (name, group) in enumerate(zip(names, groups, strict=True)):
        overlaps = [run.overlap for run in group if run.overlap is not None]
        rows.append(
            (
                name,
                str(len(group)),
                *(_formatted(scores[key][index], metric) for key in ROWS),
                *(_formatted(gains[key][index], metric, "+") for key in _BASELINES),
                f"{sum(overlaps) / len(overlaps):.2f}" if overlaps else "",
                _seconds(_estimate(group, lambda run: float(run.result["seconds"]["total"]))),
            )
        )
    conclusions = [
        _group_conclusion(name, group, {key: gains[key][i] for key in _BASELINES})
        for i, (name, group) in enumerate(zip(names, groups, strict=True))
    ]
    singles = [
        (
            run.config.name,
            name,
            str(run.config.seed),
            *(metric.difference_text(_test(run, key)) for key in ROWS),
            run.result["superposed"]["digest"][:12],
        )
        for name, group in zip(names, groups, strict=True)
        for run in group
    ]
    return str(
        render(
            "comparison.html",
            title=f"Comparison of {len(runs)} runs",
            metric=metric,
            conclusions=conclusions,
            notes=notes,
            figures=[
                _figure(f"Test {metric.title}", f"test {metric.axis}", names, scores, metric),
                _figure(
                    "Gain of the sup-ticket over the other networks",
                    f"percentage points of test {metric.title}" if metric.is_fraction else f"test {metric.title}",
                    names,
                    gains,
                    metric,
                ),
            ],
            heads=heads,
            rows=rows,
            run_heads=("name", "group", "seed", *ROWS.values(), "digest"),
            runs=singles,
        )
    )


def _common_metric(runs: Sequence[ComparedRun]) -> Metric:
    """Returns the metric of all runs. Raises ValueError if it differs."""
    metrics = [Metric.of_result(run.result) for run in runs]
    for run, metric in zip(runs, metrics, strict=True):
        if metric != metrics[0]:
            raise ValueError(
                f"runs must be of one task; {runs[0].path} has the metric {metrics[0].name!r}, and {run.path} "
                f"{metric.name!r}. Compare them separately."
            )
    return metrics[0]


def _test(run: ComparedRun, key: str) -> float:
    return float(run.result[key][Metric.of_result(run.result).name])


def _gain(run: ComparedRun, key: str) -> float:
    return Metric.of_result(run.result).gain(_test(run, "superposed"), _test(run, key))


def _estimate(group: Sequence[ComparedRun], value: Any) -> Estimate:
    return mean_and_error([value(run) for run in group])


def _formatted(estimate: Estimate, metric: Metric, sign: str = "") -> str:
    """Returns mean ± error as text; fractions in percent."""
    mean, error = estimate
    text = metric.difference_text(mean, sign=sign)
    return text if error is None else f"{text} ± {metric.difference_text(error)}"


def _seconds(estimate: Estimate) -> str:
    mean, error = estimate
    return f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"


def _figure(
    title: str, ylabel: str, names: Sequence[str], estimates_by_key: Mapping[str, Sequence[Estimate]], metric: Metric
) -> Markup:
    series = [
        Series(
            ROWS[key],
            [metric.scale * mean for mean, _ in estimates],
            [None if error is None else metric.scale * error for _, error in estimates],
            key == "superposed",
            list(ROWS).index(key),
        )
        for key, estimates in estimates_by_key.items()
    ]
    return series_figure(title, ylabel, names, series)


def _group_conclusion(name: str, group: Sequence[ComparedRun], gains: Mapping[str, Estimate]) -> tuple[str, Outcome]:
    """Returns the conclusion on a group as one sentence, and its kind."""
    metric = Metric.of_result(group[0].result)
    over = {key: Gain(*gains[key], num_runs=len(group), metric=metric) for key in ("pretrained", "best_ticket")}
    if len(group) == 1:  # the error over the test examples is known even for one run
        over = {key: gain_over(group[0].result, key) for key in over}
    text, outcome = conclusion(over["pretrained"], over["best_ticket"])
    number = f"over {len(group)} seeds" if len(group) > 1 else "in one run, whose variation over seeds is unknown,"
    return (
        f"{name}: {text}; {number} the sup-ticket gains {_formatted(gains['pretrained'], metric, '+')} "
        f"{'percentage points' if metric.is_fraction else 'units'} of test {metric.title} over the pretrained network "
        f"and {_formatted(gains['best_ticket'], metric, '+')} over the best ticket."
    ), outcome
