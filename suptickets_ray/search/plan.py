"""What a search tries, in which order, and which pretrainings that needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import all_keys
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import exploration_key, pretraining_key
from suptickets_ray.search.space import (
    METRICS,
    Dimension,
    Point,
    config_of,
    default_space,
    draw_points,
    grouped,
    listed_points,
    parse_space,
    point_key,
    settle,
)
from suptickets_ray.search.summary import budget_warning
from suptickets_ray.training.loop import budget_of

_MANY = 1000
"""Trials that a Tuner of the user's own is taken to have: more than find room at once."""


class SearchPlan:
    """A recipe's search section, checked and with its points drawn."""

    def __init__(self, config: Config, *, own_tuner: bool = False) -> None:
        """Draws the points, unless others do that later.

        Args:
            config: The recipe.
            own_tuner: Whether a Tuner of the user's own draws them; Optuna draws its own, too.

        Raises:
            ValueError: If the space or one of its points is no experiment.
        """
        section = config.search
        self.config = config
        self.metric = section.metric
        self.mode = section.mode or METRICS[section.metric]
        self.dimensions: dict[str, Dimension] = parse_space(section.space or default_space(config), all_keys())
        self.points: list[Point] = []
        if own_tuner:
            self.known = self._pretraining_points("for a Tuner of your own")
            self.num_trials = section.num_trials or _MANY
        elif section.searcher == "optuna":
            if section.num_trials is None:
                raise ValueError("search.num_trials must be given with search.searcher 'optuna'. 20 is a start.")
            _check_optuna()
            # Those that pretraining may depend on; the rest is Optuna's.
            self.known = self._pretraining_points("with search.searcher 'optuna'")
            self.num_trials = section.num_trials
        else:
            method = config.superposition.method
            drawn = draw_points(self.dimensions, section.searcher, section.num_trials, config.seed, method)
            # What explores something new comes first, what only merges comes later.
            self.points = grouped(drawn, lambda point: exploration_key(self.config_of(point)))
            self.known = self.points
            self.num_trials = len(self.points)

    def config_of(self, point: Point, number: int = 0) -> Config:
        """Returns the recipe of a point under one of its seeds."""
        return config_of(self.config, point, number)

    def warnings(self) -> list[str]:
        """Returns what a person should know about the space before trusting its answer."""
        budgets = {}
        for point in self.known:
            config = self.config_of(point)
            budgets[config.tickets.cycle_epochs] = budget_of(config).cyclic_epochs
        number, drawn = self.config.search.num_trials, len(self.points)
        found = [budget_warning(budgets), self._moved_epochs(), self._other_method()]
        if self.config.cluster.num_merge_shards > 1:
            found.append("cluster.num_merge_shards has no effect in a search: every trial merges in its own process.")
        if self.points and number is not None and drawn < number:
            found.append(f"search.num_trials is {number}, and only {drawn} different points were drawn from the space.")
        return [warning for warning in found if warning]

    def _moved_epochs(self) -> str | None:
        """A sentence where the built-in space gives the cycles other epochs than the recipe."""
        rate = self.known[0].get("tickets.cycle_rate")
        if self.config.search.space or rate is None:
            return None
        budget = budget_of(self.config_of(self.known[0]))
        return (
            f"tickets.cycle_rate is {rate:g} instead of {self.config.tickets.cycle_rate:g}, so that all cycles of any "
            f"length get {budget.cyclic_epochs} of the {self.config.train.epochs} epochs and compare fairly. A "
            "search.space of your own leaves it as it is."
        )

    def _other_method(self) -> str | None:
        """A sentence where a factor in the space means another superposition than the recipe's."""
        own = self.config.superposition.method
        used = {point.get("superposition.method", own) for point in self.known}
        if "superposition.method" in self.dimensions or own == "cia" or used == {own}:
            return None
        return (
            f"superposition.method is cima in all trials, since search.space draws its factor; the recipe's is {own}. "
            "Put superposition.method into the space to compare both."
        )

    def pretrainings(self, seeds: int | None = None) -> dict[str, Config]:
        """Returns a recipe for every pretraining that the trials need, by its key; of all seeds, or of so many."""
        numbers = range(self.config.search.num_seeds if seeds is None else seeds)
        configs = (self.config_of(point, number) for point in self.known for number in numbers)
        return {pretraining_key(config): config for config in configs}

    def _pretraining_points(self, who: str) -> list[Point]:
        """Points for every pretraining that may be needed; refuses a space of which there are endlessly many."""
        method = self.config.superposition.method
        points = listed_points(self.dimensions, method)
        highest = {key: own.arguments[1] for key, own in self.dimensions.items() if own.values is None}
        alone_and_together = [*([key] for key in highest), list(highest)] if highest else []
        for point in points:
            known = pretraining_key(self.config_of(point))
            for keys in alone_and_together:
                other = settle({**point, **{key: highest[key] for key in keys}}, method)
                if pretraining_key(self.config_of(other)) != known:
                    raise ValueError(
                        f"search.space.{keys[0]} must be a choice {who}: pretraining depends on it, and is trained "
                        f"before the trials; got {self.dimensions[keys[0]].kind}. Or use suptickets tune with the "
                        "searcher random."
                    )
        return points

    def left(self, files: SearchFiles, earlier: Mapping[str, Any] | None = None) -> list[Point]:
        """Returns the points that no earlier start has finished.

        Args:
            files: What earlier starts have kept.
            earlier: What `result.json` held, if one of them came to an end. What was stopped stays stopped, also by one
                that was killed later; what failed is tried again.
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
    """Returns the points that an earlier start stopped, from what its `result.json` held."""
    return [row["values"] for row in (earlier or {}).get("trials", ()) if row["state"] == "stopped"]


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "search.searcher 'optuna' must have the package optuna; it is missing. Install suptickets-ray[optuna]."
        ) from error
