"""A search space with Ray Tune's names, and the points that are drawn from it before the search starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from suptickets_ray.config import PLACEMENT_KEYS, Config
from suptickets_ray.lookup import choose, suggestion
from suptickets_ray.recipes.load import load_config
from suptickets_ray.search.unresolved import chosen_settings
from suptickets_ray.seeding import derive_seed

Point = dict[str, Any]
"""Dotted key to value: the settings of the recipe that a trial changes."""

DEFAULT_SPACE: dict[str, dict[str, Any]] = {
    "tickets.cycle_epochs": {"grid_search": [2, 4, 8, 12]},
    "superposition.cima_factor": {"grid_search": [0.1, 0.2, 0.5, 0.8, 0.9]},
}
"""Cycle lengths and CIMA factors of the paper's ablations, 2205.15322, section 5."""

_COMMON_EPOCHS = 24
"""A multiple of all cycle lengths of DEFAULT_SPACE."""

_FIXED_DATA_KEYS = ("name", "options", "root", "download", "split_seed", "validation_share")
"""Settings of the data that change the validation examples, on which points are compared."""

METRICS = {"validation_accuracy": "max", "validation_loss": "min"}
"""Metrics that trials are compared by, and which of their extremes is better."""


def default_space(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the built-in space for a recipe. The cycles of every length get the same total of epochs.

    If the recipe's tickets.cycle_rate gives different totals, the space changes it so that the total is the nearest
    multiple of 24 epochs. Cycle lengths then compare fairly, and share pretraining.

    Raises:
        ValueError: If no epochs remain for pretraining.
    """
    epochs, rate = config.train.epochs, Fraction(str(config.tickets.cycle_rate))
    lengths = DEFAULT_SPACE["tickets.cycle_epochs"]["grid_search"]
    totals = {int(rate * epochs / length) * length for length in lengths}
    if len(totals) == 1 and 0 not in totals:
        return DEFAULT_SPACE
    budget = max(round(rate * epochs / _COMMON_EPOCHS), 1) * _COMMON_EPOCHS
    if epochs <= budget:
        raise ValueError(
            f"train.epochs must be above {budget} for the built-in search.space; got {epochs}. Train longer, or set "
            "search.space with shorter cycles."
        )
    # Rounded up, because only whole cycles count: 24 of 145 epochs must not become 23.99.
    rate = Fraction(math.ceil(Fraction(budget, epochs) * 10**6), 10**6)
    return {**DEFAULT_SPACE, "tickets.cycle_rate": {"grid_search": [float(rate)]}}


def _choice(rng: np.random.Generator, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _quniform(rng: np.random.Generator, low: float, high: float, step: float) -> float:
    return float(np.clip(round(rng.uniform(low, high) / step) * step, low, high))


def _loguniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _randint(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high))


DRAWS: dict[str, Callable[..., Any]] = {
    "grid_search": _choice,
    "choice": _choice,
    "uniform": _uniform,
    "quniform": _quniform,
    "loguniform": _loguniform,
    "randint": _randint,
}
"""Functions that draw a value, by Ray Tune's names."""

_FINITE = ("grid_search", "choice")
_NUM_BOUNDS = {"uniform": 2, "quniform": 3, "loguniform": 2, "randint": 2}


@dataclass(frozen=True)
class Dimension:
    """The search space of one setting."""

    kind: str
    """A key of DRAWS."""
    arguments: tuple[Any, ...]
    """The values, or the bounds."""

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values of a finite dimension; None for a continuous one."""
        if self.kind == "randint":
            return tuple(range(*self.arguments))
        return self.arguments if self.kind in _FINITE else None

    def draw(self, rng: np.random.Generator) -> Any:
        """Returns one random value."""
        return DRAWS[self.kind](rng, *self.arguments)


def parse_space(space: Mapping[str, Any], known_keys: Sequence[str]) -> dict[str, Dimension]:
    """Returns the dimensions of a recipe's `search.space`.

    Args:
        space: Dotted key to {kind: arguments}, e.g. {"train.lr": {"loguniform": [0.01, 1]}}.
        known_keys: The dotted keys of all settings.

    Raises:
        ValueError: If a key or kind is unknown, or if its arguments are invalid.
    """
    if not space:
        raise ValueError("search.space must contain at least one key; got none. Leave it out for the built-in space.")
    return {key: _parse_dimension(key, domain, known_keys) for key, domain in space.items()}


def _parse_dimension(key: str, domain: Any, known_keys: Sequence[str]) -> Dimension:
    section, *rest = key.split(".")
    root = ".".join([section, *rest[:1]])
    if root not in known_keys or section in ("search", "cluster", "storage", "name", "seed"):
        raise ValueError(
            f"search.space must contain settings of the experiment; got {key!r}{suggestion(key, known_keys)} "
            "To repeat points with several seeds, set search.num_seeds."
        )
    if section == "data" and rest[:1] and rest[0] in _FIXED_DATA_KEYS:
        raise ValueError(
            "search.space must not change the data, because points are compared on one validation set; got "
            f"{key!r}. Run one search per value, each with another name=."
        )
    if root in PLACEMENT_KEYS:
        raise ValueError(f"search.space must contain settings that change results; got {key!r}. Leave it out.")
    if not isinstance(domain, Mapping) or len(domain) != 1:
        raise ValueError(f"search.space.{key} must be one of {', '.join(DRAWS)} with its values; got {domain!r}.")
    kind, arguments = next(iter(domain.items()))
    choose(DRAWS, str(kind), f"kind of search.space.{key}")
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(f"search.space.{key}.{kind} must be a list of values or bounds; got {arguments!r}.")
    if kind in _NUM_BOUNDS:
        numbers = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in arguments)
        if len(arguments) != _NUM_BOUNDS[kind] or not numbers or not arguments[0] < arguments[1]:
            expected = "[low, high, step]" if kind == "quniform" else "[low, high]"
            raise ValueError(f"search.space.{key}.{kind} must be {expected} with low below high; got {arguments}.")
        if (kind == "loguniform" and arguments[0] <= 0) or (kind == "quniform" and arguments[2] <= 0):
            raise ValueError(f"search.space.{key}.{kind} must be above 0; got {arguments}.")
        if kind == "quniform" and not all(_is_multiple(bound, arguments[2]) for bound in arguments[:2]):
            raise ValueError(
                f"search.space.{key}.quniform must have bounds that are multiples of its step, as in Ray Tune; got "
                f"{arguments}."
            )
        if kind == "randint" and not all(isinstance(number, int) for number in arguments):
            raise ValueError(f"search.space.{key}.randint must be whole numbers; got {arguments}.")
    return Dimension(str(kind), tuple(arguments))


def _is_multiple(number: float, step: float) -> bool:
    return math.isclose(number / step, round(number / step))


def draw_points(
    dimensions: Mapping[str, Dimension], searcher: str, num_trials: int | None, seed: int, method: str
) -> list[Point]:
    """Returns the distinct points of a random or grid search, in the order of their trials.

    Args:
        dimensions: The dimensions that `parse_space` returned.
        searcher: "random" or "grid".
        num_trials: Number of points. None is all combinations of the grid.
        seed: Seed of the random points.
        method: The recipe's `superposition.method`.

    Raises:
        ValueError: If a grid contains a continuous dimension, if the number of trials is missing, or if it is larger
            than the number of points.
    """
    listed = {
        key: dimension.values
        for key, dimension in dimensions.items()
        if dimension.kind == "grid_search" or (searcher == "grid" and dimension.values is not None)
    }
    others = [key for key in dimensions if key not in listed]
    if searcher == "grid" and others:
        raise ValueError(
            f"search.searcher 'grid' must have finite dimensions only; got {dimensions[others[0]].kind} in "
            f"search.space.{others[0]}. Use grid_search, or search.searcher=random."
        )
    grid = [dict(zip(listed, values, strict=True)) for values in itertools.product(*(v or () for v in listed.values()))]
    rng = np.random.default_rng(derive_seed(seed, "search"))
    if not others:
        points = _distinct([normalize_point(point, method) for point in grid])
        if num_trials is not None and num_trials > len(points):
            raise ValueError(
                f"search.num_trials must be at most {len(points)}, the points of search.space; got {num_trials}. Leave "
                "it out to try all points. To repeat each point, set search.num_seeds."
            )
        if searcher == "random":
            points = _sample_order(points, num_trials, rng)
        return points[:num_trials]
    if num_trials is None:
        raise ValueError(
            f"search.num_trials must be given, because search.space.{others[0]} is drawn at random. Start with 20."
        )
    grid = _sample_order(grid, num_trials, rng)
    drawn = []
    for number in range(num_trials):
        values = grid[number % len(grid)] | {key: dimensions[key].draw(rng) for key in others}
        drawn.append(normalize_point({key: values[key] for key in dimensions}, method))
    return _distinct(drawn)


def _sample_order(grid: list[Point], number: int | None, rng: np.random.Generator) -> list[Point]:
    """Returns the grid, shuffled if only `number` of its points are used: the first points are all in one corner."""
    if number is None or number >= len(grid):
        return grid
    return [grid[index] for index in rng.permutation(len(grid))]


def listed_points(dimensions: Mapping[str, Dimension], method: str) -> list[Point]:
    """Returns all combinations of the finite dimensions' values, with the lowest value of the continuous dimensions.

    Args:
        dimensions: The space.
        method: The recipe's `superposition.method`.
    """
    values = [dimension.values or dimension.arguments[:1] for dimension in dimensions.values()]
    return [normalize_point(dict(zip(dimensions, row, strict=True)), method) for row in itertools.product(*values)]


def normalize_point(point: Point, method: str) -> Point:
    """Returns a point in which `superposition.cima_factor` and `superposition.method` agree.

    The factor is removed if the point's method does not read it. If the point has no method, it gets the one that the
    factor implies: the recipe's method if that is user-defined, else CIMA.

    Args:
        point: Values by dotted key.
        method: The recipe's `superposition.method`.
    """
    if "superposition.cima_factor" not in point:
        return point
    if "superposition.method" not in point:
        return {**point, "superposition.method": method if ":" in method else "cima"}
    reads_it = point["superposition.method"] == "cima" or ":" in point["superposition.method"]
    return point if reads_it else {k: v for k, v in point.items() if k != "superposition.cima_factor"}


def point_key(point: Point) -> str:
    """Returns a short digest of a point."""
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:12]


def config_of(base: Config, point: Point, number: int = 0) -> Config:
    """Returns the recipe of a point with its `number`-th seed.

    Raises:
        ValueError: If the point is not a valid recipe. The message contains the point.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in point.items()]
    try:
        return load_config(chosen_settings(base), [*overrides, f"seed={base.seed + number}"])
    except ValueError as error:
        raise ValueError(f"Cannot use the point {' '.join(overrides)} of search.space: {error}") from error


def _distinct(points: Sequence[Point]) -> list[Point]:
    found: dict[str, Point] = {}
    for point in points:
        found.setdefault(json.dumps(point, sort_keys=True), point)
    return list(found.values())


def new_keys_first(points: Sequence[Point], key_of: Callable[[Point], str]) -> list[Point]:
    """Returns the points reordered: first one point per exploration, then the points that share an exploration.

    Concurrent trials then train different tickets, and later trials reuse them.

    Args:
        points: The points.
        key_of: Called with a point; returns the key of its exploration.
    """
    first: list[Point] = []
    rest: list[Point] = []
    seen: set[str] = set()
    for point in points:
        key = key_of(point)
        (rest if key in seen else first).append(point)
        seen.add(key)
    return first + rest
