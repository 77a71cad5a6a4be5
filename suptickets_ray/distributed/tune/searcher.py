"""The search space, Optuna's searcher and the early stopping as objects of Ray Tune."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray import tune as ray_tune

from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.plan import SearchPlan, stopped_points
from suptickets_ray.search.points import point_key
from suptickets_ray.search.space import Dimension
from suptickets_ray.training.loop import budget_of


def tune_space(dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
    """Returns a search space as objects of Ray Tune."""
    return {key: _domain(dimension) for key, dimension in dimensions.items()}


def _domain(dimension: Dimension) -> Any:
    values = list(dimension.arguments)
    if dimension.kind in ("grid_search", "choice"):
        return getattr(ray_tune, dimension.kind)(values)
    return getattr(ray_tune, dimension.kind)(*values)


def early_stopping(plan: SearchPlan) -> Any:
    """Returns the scheduler that the recipe selects, or None if no trial is stopped early."""
    if plan.config.search.scheduler != "asha":
        return None
    configs = [plan.config_of(point) for point in plan.known]
    longest = max(budget_of(config).cyclic_epochs for config in configs) * plan.config.search.num_seeds
    return ray_tune.schedulers.ASHAScheduler(
        time_attr="cyclic_epochs",
        # One epoch more than a trial has, so that a trial that reaches its last cycle stores its result and ends.
        max_t=longest + 1,
        grace_period=min(config.tickets.cycle_epochs for config in configs),
        reduction_factor=2,
    )


def optuna_searcher(plan: SearchPlan, files: SearchFiles, earlier: Mapping[str, Any] | None) -> tuple[Any, int]:
    """Returns Optuna's searcher with the results of earlier starts, and the number of trials that are left.

    Optuna receives each result with the point that it had suggested; `normalize_point` may have removed keys from it.
    A trial without a finite score is not passed to Optuna, but counts as done.

    Args:
        plan: The plan of the search.
        files: The files of the search.
        earlier: The content of `result.json`, if an earlier start has ended.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points, rewards = [], []
    done = {point_key(point) for point in stopped_points(earlier)}
    for point, seeds in files.points():
        if len(seeds) < plan.config.search.num_seeds:
            continue
        done.add(point_key(point))
        suggested, reward = seeds[0].get("suggested", point), sum(row[plan.metric] for row in seeds) / len(seeds)
        if suggested.keys() == plan.dimensions.keys() and math.isfinite(reward):
            points.append(suggested)
            rewards.append(reward)
    space = {
        # Optuna has no grid; it treats the values of a grid as a choice.
        key: ray_tune.choice(list(dimension.values)) if dimension.values is not None else _domain(dimension)
        for key, dimension in plan.dimensions.items()
    }
    known = {"points_to_evaluate": points, "evaluated_rewards": rewards} if points else {}
    searcher = OptunaSearch(space, metric=plan.metric, mode=plan.mode, seed=plan.config.seed, **known)
    return searcher, max(plan.num_trials - len(done), 0)
