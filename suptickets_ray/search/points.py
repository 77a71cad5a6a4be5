"""The points of a search space: drawing them before the search starts, their order, keys and recipes.

Not drawn by Ray Tune: `--dry-run` plans a search without Ray, and a search that is resumed after an update of Ray must
find the same points.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import load_config
from suptickets_ray.search.space import Dimension
from suptickets_ray.search.unresolved import chosen_settings
from suptickets_ray.seeding import derive_seed

Point = dict[str, Any]
"""Dotted key to value: the settings of the recipe that a trial changes."""


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
