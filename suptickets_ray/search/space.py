"""A search space with Ray Tune's names: its dimensions, and the built-in one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from suptickets_ray.config import PLACEMENT_KEYS, Config
from suptickets_ray.lookup import choose, suggestion

DEFAULT_SPACE: dict[str, dict[str, Any]] = {
    "tickets.cycle_epochs": {"grid_search": [2, 4, 8, 12]},
    "superposition.cima_factor": {"grid_search": [0.1, 0.2, 0.5, 0.8, 0.9]},
}
"""Cycle lengths and CIMA factors of the paper's ablations, 2205.15322, section 5."""

_COMMON_EPOCHS = 24
"""A multiple of all cycle lengths of DEFAULT_SPACE."""

_FIXED_DATA_KEYS = ("name", "options", "root", "download", "split_seed", "validation_share")
"""Settings of the data that change the validation examples, on which points are compared."""


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
    if section == "task":
        raise ValueError(
            f"search.space must not change the task, because points are compared by its metric; got {key!r}. Run one "
            "search per value, each with another name=."
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
