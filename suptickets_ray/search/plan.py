"""The plan of a search: its points, their order, and the pretrainings that they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.declarations import all_keys
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import exploration_key, pretraining_key
from suptickets_ray.search.points import (
    Point,
    config_of,
    draw_points,
    listed_points,
    new_keys_first,
    normalize_point,
    point_key,
)
from suptickets_ray.search.space import Dimension, default_space, parse_space
from suptickets_ray.search.summary import budget_warning
from suptickets_ray.training.loop import budget_of
from suptickets_ray.training.task import validation_metrics
from suptickets_ray.training.tasks import make_task

_CUSTOM_TUNER_TRIALS = 1000
"""Assumed number of trials of a user-defined Tuner: more than run concurrently."""


class SearchPlan:
    """A recipe's search section after validation, with its points."""

    def __init__(self, config: Config, *, custom_tuner: bool = False) -> None:
        """Draws the points, unless Optuna or a user-defined Tuner draws them later.

        Args:
            config: The recipe.
            custom_tuner: Whether a user-defined Tuner draws the points.

        Raises:
            ValueError: If the space is invalid, or one of its points is not a valid recipe.
        """
        section = config.search
        self.config = config
        metrics = validation_metrics(make_task(config))
        self.scores = tuple(metrics)
        """Keys of the scores of every trial."""
        self.metric = section.metric or self.scores[0]
        self.mode = section.mode or metrics[self.metric]
        self.dimensions: dict[str, Dimension] = parse_space(section.space or default_space(config), all_keys())
        self.points: list[Point] = []
        if custom_tuner:
            self.known = self._pretraining_points("with a user-defined Tuner")
            self.num_trials = section.num_trials or _CUSTOM_TUNER_TRIALS
        elif section.searcher == "optuna":
            if section.num_trials is None:
                raise ValueError("search.num_trials must be given with search.searcher 'optuna'. 20 is a start.")
            _check_optuna()
            # One point for each pretraining that may be needed. Optuna draws the trials' points.
            self.known = self._pretraining_points("with search.searcher 'optuna'")
            self.num_trials = section.num_trials
        else:
            method = config.superposition.method
            drawn = draw_points(self.dimensions, section.searcher, section.num_trials, config.seed, method)
            self.points = new_keys_first(drawn, lambda point: exploration_key(self.config_of(point)))
            self.known = self.points
            self.num_trials = len(self.points)

    def config_of(self, point: Point, number: int = 0) -> Config:
        """Returns the recipe of a point with its `number`-th seed."""
        return config_of(self.config, point, number)

    def warnings(self) -> list[str]:
        """Returns warnings about the space that matter for the interpretation of the result."""
        budgets = {}
        for point in self.known:
            config = self.config_of(point)
            budgets[config.tickets.cycle_epochs] = budget_of(config).cyclic_epochs
        number, drawn = self.config.search.num_trials, len(self.points)
        found = [budget_warning(budgets), self._cycle_rate_warning(), self._method_warning()]
        if self.config.cluster.num_merge_shards > 1:
            found.append("cluster.num_merge_shards has no effect in a search: every trial merges in its own process.")
        if self.points and number is not None and drawn < number:
            found.append(f"search.num_trials is {number}, but only {drawn} distinct points were drawn from the space.")
        return [warning for warning in found if warning]

    def _cycle_rate_warning(self) -> str | None:
        """Returns a warning if the built-in space changes tickets.cycle_rate, else None."""
        rate = self.known[0].get("tickets.cycle_rate")
        if self.config.search.space or rate is None:
            return None
        budget = budget_of(self.config_of(self.known[0]))
        return (
            f"tickets.cycle_rate is {rate:g} instead of {self.config.tickets.cycle_rate:g}. The cycles of every length "
            f"then get {budget.cyclic_epochs} of the {self.config.train.epochs} epochs, which makes the comparison "
            "fair. To keep the recipe's rate, set search.space."
        )

    def _method_warning(self) -> str | None:
        """Returns a warning if a factor in the space implies another superposition than the recipe's, else None."""
        method = self.config.superposition.method
        used = {point.get("superposition.method", method) for point in self.known}
        if "superposition.method" in self.dimensions or method == "cia" or used == {method}:
            return None
        return (
            "superposition.method is cima in all trials, because search.space contains CIMA's factor; the recipe's "
            f"method is {method}. To compare both, add superposition.method to the space."
        )

    def pretrainings(self, seeds: int | None = None) -> dict[str, Config]:
        """Returns a recipe for every pretraining that the trials need, by its key.

        Args:
            seeds: Number of seeds per point. None is search.num_seeds.
        """
        numbers = range(self.config.search.num_seeds if seeds is None else seeds)
        configs = (self.config_of(point, number) for point in self.known for number in numbers)
        return {pretraining_key(config): config for config in configs}

    def _pretraining_points(self, condition: str) -> list[Point]:
        """Returns a point for every pretraining that may be needed. Refuses a space that needs infinitely many.

        Args:
            condition: When this restriction applies, for the error message.
        """
        method = self.config.superposition.method
        points = listed_points(self.dimensions, method)
        highest = {
            key: dimension.arguments[1] for key, dimension in self.dimensions.items() if dimension.values is None
        }
        alone_and_together = [*([key] for key in highest), list(highest)] if highest else []
        for point in points:
            known = pretraining_key(self.config_of(point))
            for keys in alone_and_together:
                other = normalize_point({**point, **{key: highest[key] for key in keys}}, method)
                if pretraining_key(self.config_of(other)) != known:
                    raise ValueError(
                        f"search.space.{keys[0]} must be a choice {condition}, because it changes pretraining, which "
                        f"is trained before the trials; got {self.dimensions[keys[0]].kind}. Or use suptickets tune "
                        "with search.searcher=random."
                    )
        return points

    def unfinished(self, files: SearchFiles, earlier: Mapping[str, Any] | None = None) -> list[Point]:
        """Returns the points that no earlier start has finished. Failed trials run again, stopped trials do not.

        Args:
            files: The search's files.
            earlier: Content of the `result.json` of an earlier start, if it exists.
        """
        seeds, stopped = range(self.config.search.num_seeds), {point_key(point) for point in stopped_points(earlier)}
        return [
            point
            for point in self.points
            if any(files.row(point, number) is None for number in seeds)
            and point_key(point) not in stopped
            and not files.running(point).get("stopped")
        ]


def stopped_points(earlier: Mapping[str, Any] | None) -> list[Point]:
    """Returns the points that an earlier start stopped, from the content of its `result.json`."""
    return [row["values"] for row in (earlier or {}).get("trials", ()) if row["state"] == "stopped"]


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "search.searcher 'optuna' must have the package optuna; it is missing. Install suptickets-ray[optuna]."
        ) from error
