"""What a search tries, in which order, and which phase ones that needs."""

from __future__ import annotations

from suptickets_ray.config import Config
from suptickets_ray.config_io import all_keys
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import exploration_key, phase_one_key
from suptickets_ray.search.space import (
    DEFAULT_SPACE,
    METRICS,
    Dimension,
    Point,
    config_of,
    draw_points,
    grouped,
    listed_points,
    parse_space,
    settle,
)
from suptickets_ray.search.summary import budget_warning
from suptickets_ray.training.loop import budget_of


class SearchPlan:
    """A recipe's search section, checked and with its points drawn."""

    def __init__(self, config: Config) -> None:
        """Draws the points, unless Optuna does that later.

        Raises:
            ValueError: If the space or one of its points is no experiment.
        """
        section = config.search
        self.config = config
        self.metric = section.metric
        self.mode = section.mode or METRICS[section.metric]
        self.dimensions: dict[str, Dimension] = parse_space(section.space or DEFAULT_SPACE, all_keys())
        self.points: list[Point] = []
        if section.searcher == "optuna":
            if section.num_trials is None:
                raise ValueError("search.num_trials must be given with search.searcher 'optuna'. 20 is a start.")
            _check_optuna()
            # Those that phase one may depend on; the rest is Optuna's.
            self.known = self._phase_one_points()
            self.num_trials = section.num_trials
        else:
            drawn = draw_points(self.dimensions, section.searcher, section.num_trials, config.seed)
            # What explores something new comes first, what only folds comes later.
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
        warning = budget_warning(budgets)
        return [warning] if warning else []

    def phase_ones(self) -> dict[str, Config]:
        """Returns a recipe for every phase one that the trials need, by its key."""
        configs = (self.config_of(point, number) for point in self.known for number in range(self.config.search.seeds))
        return {phase_one_key(config): config for config in configs}

    def _phase_one_points(self) -> list[Point]:
        """Points for every phase one that may be needed; refuses a space of which there are endlessly many."""
        found: dict[str, Point] = {}
        for point in listed_points(self.dimensions):
            found.setdefault(phase_one_key(self.config_of(point)), point)
        middle = next(iter(found.values()))
        for key, dimension in self.dimensions.items():
            if dimension.values is None:
                other = {**middle, key: dimension.arguments[1]}
                if phase_one_key(self.config_of(settle(other))) != phase_one_key(self.config_of(middle)):
                    raise ValueError(
                        f"search.space.{key} must be a choice with search.searcher 'optuna': phase one depends on it, "
                        f"and is trained before the trials; got {dimension.kind}. Or use the searcher random."
                    )
        return list(found.values())

    def left(self, files: SearchFiles) -> list[Point]:
        """Returns the points that no earlier start has finished."""
        seeds = range(self.config.search.seeds)
        return [point for point in self.points if any(files.row(point, number) is None for number in seeds)]


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "search.searcher 'optuna' must have the package optuna; it is missing. Install suptickets-ray[optuna]."
        ) from error
