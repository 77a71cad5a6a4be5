"""Several runs side by side as one page: those that differ only in their seed are one row, with its error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.progress.summary_table import ROWS
from suptickets_ray.recipes.load import changes_results, differing_keys, flatten, to_dict
from suptickets_ray.report.figures import Series, series_figure
from suptickets_ray.report.run_page import note, page, table
from suptickets_ray.superposition.assessment import Gain, Outcome, conclusion, gain_over

_RIVALS = ("pretrained", "mean_ticket", "best_ticket", "ensemble")
"""Networks that the sup-ticket is compared with, run by run."""
Estimate = tuple[float, float | None]
"""A mean and its standard error; no error of a single value."""


@dataclass(frozen=True)
class ComparedRun:
    """A finished run, as far as a comparison needs it."""

    path: str
    config: Config
    result: Mapping[str, Any]
    """What `result.json` holds."""
    overlap: float | None
    """Mean overlap of two tickets' masks; None where it could not be found out."""


def group_runs(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Returns the runs in groups of those that differ only in their seed, name and place, in the order given.

    Raises:
        ValueError: If two runs are one result twice, which would make errors look smaller than they are.
    """
    groups: list[list[ComparedRun]] = []
    for run in runs:
        for group in groups:
            if set(differing_keys(group[0].config, run.config)) <= {"seed"}:
                for other in group:
                    if run.result["superposed"]["digest"] == other.result["superposed"]["digest"]:
                        raise ValueError(
                            f"runs must be distinct to be compared; {run.path} and {other.path} are of the same recipe "
                            "and have the same result. Leave one out."
                        )
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def group_names(groups: Sequence[Sequence[ComparedRun]]) -> list[str]:
    """Returns for each group the settings in which it differs from the others; its run's name if that says nothing."""
    settings = [dict(flatten(to_dict(group[0].config))) for group in groups]
    keys = sorted({key for own in settings for key in own if changes_results(key) and key != "seed"})
    telling = [key for key in keys if any(own.get(key) != settings[0].get(key) for own in settings)]
    shared = Counter(key.rpartition(".")[2] for key in telling)

    def short(key: str) -> str:
        last = key.rpartition(".")[2]
        return last if shared[last] == 1 else key

    names = [", ".join(f"{short(key)}={own[key]}" for key in telling if key in own) for own in settings]
    return [name or group[0].config.name for name, group in zip(names, groups, strict=True)]


def mean_and_error(values: Sequence[float]) -> Estimate:
    """Returns the mean and its standard error, which a single value does not have."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def render_comparison(runs: Sequence[ComparedRun], notes: Sequence[str] = ()) -> str:
    """Returns the page.

    Args:
        runs: Finished runs, two or more.
        notes: What could not be found out, one sentence each.

    Raises:
        ValueError: As `group_runs`.
    """
    groups = group_runs(runs)
    names = group_names(groups)
    accuracies = {key: [_estimate(group, lambda run, key=key: _test(run, key)) for group in groups] for key in ROWS}
    gains = {key: [_estimate(group, lambda run, key=key: _gain(run, key)) for group in groups] for key in _RIVALS}
    heads = ("runs", "seeds", *ROWS.values(), *(f"gain over the {ROWS[key]}" for key in _RIVALS), "overlap", "seconds")
    rows = []
    for index, (name, group) in enumerate(zip(names, groups, strict=True)):
        overlaps = [run.overlap for run in group if run.overlap is not None]
        rows.append(
            (
                name,
                str(len(group)),
                *(_shown(accuracies[key][index], "%") for key in ROWS),
                *(_shown(gains[key][index], "", "+") for key in _RIVALS),
                f"{sum(overlaps) / len(overlaps):.2f}" if overlaps else "",
                _shown(_estimate(group, lambda run: float(run.result["seconds"]["total"])), "", digits=1),
            )
        )
    conclusions = [
        _concluded(name, group, {key: gains[key][i] for key in _RIVALS})
        for i, (name, group) in enumerate(zip(names, groups, strict=True))
    ]
    singles = [
        (
            run.config.name,
            name,
            str(run.config.seed),
            *(f"{100 * _test(run, key):.2f}" for key in ROWS),
            run.result["superposed"]["digest"][:12],
        )
        for name, group in zip(names, groups, strict=True)
        for run in group
    ]
    return page(
        f"{len(runs)} runs side by side",
        "".join(f'<p class="assessment {outcome}">{escape(words)}</p>' for words, outcome in conclusions)
        + "".join(map(note, notes))
        + "<h2>Did superposing pay?</h2>"
        + _figure("Test accuracy", "test accuracy (%)", names, accuracies)
        + _figure("Gain of the sup-ticket over the other networks", "points of test accuracy", names, gains)
        + "<h2>Numbers</h2><p>Test accuracies in %, gains in points, each the mean over runs that differ only in their "
        "seed, ± the standard error of that mean. A gain is taken within a run; where the middle 95 % of Student's t "
        "around it hold nothing, it may be chance. The overlap of the masks is that of two tickets of one run. "
        f"The seconds are those of a run's last start.</p>{table(heads, rows)}"
        f"<h2>Runs</h2>{table(('name', 'of', 'seed', *ROWS.values(), 'digest'), singles)}",
    )


def _test(run: ComparedRun, key: str) -> float:
    return float(run.result[key]["accuracy"])


def _gain(run: ComparedRun, key: str) -> float:
    return _test(run, "superposed") - _test(run, key)


def _estimate(group: Sequence[ComparedRun], value: Any) -> Estimate:
    return mean_and_error([value(run) for run in group])


def _shown(estimate: Estimate, unit: str, sign: str = "", digits: int = 2) -> str:
    """Shares as hundredths when there is a unit or a sign; seconds as they are."""
    factor = 100 if unit or sign else 1
    mean, error = estimate
    text = f"{factor * mean:{sign}.{digits}f}"
    return text if error is None else f"{text} ± {factor * error:.{digits}f}"


def _figure(title: str, ylabel: str, names: Sequence[str], found: Mapping[str, Sequence[Estimate]]) -> str:
    series = [
        Series(
            ROWS[key],
            [100 * mean for mean, _ in estimates],
            [None if error is None else 100 * error for _, error in estimates],
            key == "superposed",
            list(ROWS).index(key),
        )
        for key, estimates in found.items()
    ]
    return series_figure(title, ylabel, names, series)


def _concluded(name: str, group: Sequence[ComparedRun], gains: Mapping[str, Estimate]) -> tuple[str, Outcome]:
    """One sentence on a group; with an error known, a gain within its 95 % interval may be chance."""
    over = {key: Gain(*gains[key], num_runs=len(group)) for key in ("pretrained", "best_ticket")}
    if len(group) == 1:  # which knows at least what the choice of the test set's examples may change
        over = {key: gain_over(group[0].result, key) for key in over}
    words, outcome = conclusion(over["pretrained"], over["best_ticket"])
    number = f"over {len(group)} seeds" if len(group) > 1 else "in one run, which says little about chance,"
    return (
        f"{name}: {words}; {number} the sup-ticket gains {_shown(gains['pretrained'], '', '+')} points of test "
        f"accuracy on the pretrained network and {_shown(gains['best_ticket'], '', '+')} on the best ticket."
    ), outcome
