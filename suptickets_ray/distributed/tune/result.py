"""Results of a search: the table of trials, the best recipe, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.distributed.cluster.errors import root_cause
from suptickets_ray.distributed.pipeline.result import Clock, stored_result, versions, without_nan
from suptickets_ray.recipes.load import config_digest, to_dict, to_yaml
from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.report.search_page import render_search
from suptickets_ray.search.files import SearchFiles, holds_search
from suptickets_ray.search.plan import SearchPlan
from suptickets_ray.search.points import Point, normalize_point, point_key
from suptickets_ray.search.summary import noise_warning, ranked, to_parquet, trial_row
from suptickets_ray.tickets.run_folder import BEST_FILE, TRIALS_FILE
from suptickets_ray.training.data.fingerprint import load_recorded
from suptickets_ray.training.determinism import worker_determinism
from suptickets_ray.training.evaluation import evaluate_ticket
from suptickets_ray.training.tasks import make_task
from suptickets_ray.training.tensorboard import write_hparams

_CHANGEABLE_KEYS = ("max_concurrent_trials",)
"""Keys of the section `search` that may differ when an interrupted search continues."""


def trial_rows(plan: SearchPlan, files: SearchFiles, grid: Any) -> list[dict[str, Any]]:
    """Returns one row per trial, in the order of the points."""
    errors, points = {}, {point_key(point): point for point in plan.points}
    for result in grid:
        point = normalize_point(result.config.get("point", result.config), plan.config.superposition.method)
        points.setdefault(point_key(point), point)
        errors[point_key(point)] = result.error
    for point, _ in files.points():  # points that Optuna chose in earlier starts
        points.setdefault(point_key(point), point)
    rows = []
    for number, (key, point) in enumerate(points.items()):
        seeds = [row for index in range(plan.config.search.num_seeds) if (row := files.row(point, index)) is not None]
        state, error = "complete", None
        if len(seeds) < plan.config.search.num_seeds:
            error = root_cause(errors[key]) if errors.get(key) is not None else None
            state, seeds = "failed" if error else "stopped", [files.running(point)]
        rows.append(trial_row(number, point, seeds, plan.metric, state, plan.scores) | {"error": error})
    return rows


def conclude(
    plan: SearchPlan, files: SearchFiles, rows: Sequence[dict[str, Any]], clock: Clock, earlier_warnings: Sequence[str]
) -> dict[str, Any]:
    """Evaluates only the best trial on the test set, writes the files, and returns the content of `result.json`.

    Args:
        plan: The plan of the search.
        files: The files of the search.
        rows: The result of `trial_rows`.
        clock: Measures this start's time.
        earlier_warnings: The warnings so far.

    Raises:
        RuntimeError: If no trial is complete, or all have diverged.
    """
    best_first = ranked(rows, plan.metric, plan.mode)
    if not best_first:
        if any(row["state"] == "complete" for row in rows):
            raise RuntimeError(
                f"Cannot choose the best trial: all trials have diverged, and none has a finite {plan.metric}. "
                "Search lower learning rates."
            )
        reason = next((row["error"] for row in rows if row["error"]), "all trials were stopped or interrupted")
        raise RuntimeError(
            f"Cannot choose the best trial: no trial is complete: {reason}. The same command continues the search."
        )
    winner = best_first[0]
    point, metric = winner["values"], make_task(plan.config).metric
    config = replace(plan.config_of(point), name=f"{plan.config.name}-best")
    tests = _test_scores(plan, files, point)
    warnings = [*earlier_warnings, *filter(None, [noise_warning(best_first, plan.metric)])]
    if failed_rows := [row for row in rows if row["state"] == "failed"]:
        warnings.append(
            f"{len(failed_rows)} trials failed, the first with: {failed_rows[0]['error']}. The same command retries "
            "them."
        )
    result: dict[str, Any] = {
        "state": "complete",
        "name": plan.config.name,
        "task_metric": metric.to_dict(),
        "metric": plan.metric,
        "mode": plan.mode,
        "trials": list(rows),
        "best": {
            "trial": winner["trial"],
            "values": point,
            **{key: winner[key] for key in plan.scores},
            **{key: sum(test[key] for test in tests) / len(tests) for key in tests[0]},
            "digest": winner["digest"],
        },
        "pretrainings": files.num_pretrainings(),
        "cycles_trained": files.num_cycles(),
        "warnings": warnings,
        "seconds": clock.seconds(),
        "versions": versions(),
        "config": to_dict(plan.config),
        "config_digest": config_digest(plan.config),
    }
    result = without_nan(result)
    trials = [{**row, "name": f"trial-{point_key(row['values'])}"} for row in result["trials"]]
    trials[winner["trial"]][metric.name] = result["best"][metric.name]
    write_hparams(files.tensorboard, trials, (*plan.scores, metric.name))
    files.store.write(BEST_FILE, to_yaml(config).encode())
    files.store.write(TRIALS_FILE, to_parquet(rows))
    recorded = RecordedRun(files.path)
    recorded.write_report(render_search(result))
    recorded.write_result(result)
    return result


def _test_scores(plan: SearchPlan, files: SearchFiles, point: Point) -> list[dict[str, float]]:
    scores = []
    for number in range(plan.config.search.num_seeds):
        config = plan.config_of(point, number)
        with worker_determinism(config):
            scores.append(
                evaluate_ticket(config, load_recorded(config.data, files.store), files.superposed(point, number))
            )
    return scores


def finished_search(files: SearchFiles, config: Config) -> dict[str, Any] | None:
    """Returns the result of this search if it has ended, or None if it was interrupted or never started.

    Raises:
        ValueError: If the folder holds another search or a run, finished or not.
    """
    if RecordedRun(files.path).is_begun and not holds_search(files.store):
        raise ValueError(f"Cannot search in {files.path}: the folder holds a run. Choose another name= for the search.")
    return stored_result(files.path, config, "search", lambda old: _other_search_keys(old, config))


def _other_search_keys(old: Config, config: Config) -> list[str]:
    """Returns the keys of the section `search` that make it another search."""
    first, second = (to_dict(one)["search"] for one in (old, config))
    return [
        f"search.{key}" for key in first | second if key not in _CHANGEABLE_KEYS and first.get(key) != second.get(key)
    ]


def num_failed(result: Mapping[str, Any]) -> int:
    """Returns the number of failed trials, which the same command retries."""
    return sum(row["state"] == "failed" for row in result["trials"])
