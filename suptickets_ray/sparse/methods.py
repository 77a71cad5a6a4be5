"""Sparse training methods as data: which parts each one is made of, and its source's defaults.

A new method of known parts is one row. A method reads exactly the settings listed in its `defaults`; any other
setting would do nothing, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suptickets_ray.lookup import choose, choose_or_import, suggestion
from suptickets_ray.sparse.criteria import DROP_SCORES, GROW_SCORES, REDISTRIBUTIONS
from suptickets_ray.sparse.distributions import DISTRIBUTIONS
from suptickets_ray.sparse.schedules import FRACTIONS

_EXCHANGE = {"drop": "magnitude", "redistribution": "none"}
_WINDOW = {"prune_start_fraction": 0.0, "prune_end_fraction": 0.5}


@dataclass(frozen=True)
class Method:
    """One row of `METHODS`."""

    source: str
    """Where the method and its defaults come from."""
    defaults: Mapping[str, Any]
    """Every setting that the method reads, with its default."""
    sparse: bool = True
    """False trains the dense network, at density 1."""
    starts_dense: bool = False
    """True starts with all connections, whatever the target density."""
    prunes: bool = False
    """Lowers the density over the prune window."""
    exchanges: bool = False
    """Drops and grows at every update."""

    @property
    def can_explore(self) -> bool:
        """Whether the method has criteria for the exploration that opens a cycle."""
        return "grow" in self.defaults


METHODS: dict[str, Method] = {
    "dense": Method("plain training", {}, sparse=False),
    "static": Method("fixed masks, e.g. 1911.11134, section 4", {"distribution": "erk"}),
    "set": Method(
        "Mocanu et al. 2018, zeta 0.3",
        {
            "distribution": "erk",
            **_EXCHANGE,
            "grow": "random",
            "drop_fraction": 0.3,
            "drop_fraction_schedule": "constant",
            "update_interval_steps": 100,
            "update_end_fraction": 1.0,
        },
        exchanges=True,
    ),
    "rigl": Method(
        "1911.11134, section 4: delta T 100, alpha 0.3, cosine, until 75 % of the steps",
        {
            "distribution": "erk",
            **_EXCHANGE,
            "grow": "gradient",
            "drop_fraction": 0.3,
            "drop_fraction_schedule": "cosine",
            "update_interval_steps": 100,
            "update_end_fraction": 0.75,
        },
        exchanges=True,
    ),
    "gmp": Method(
        "1710.01878; drop, grow and redistribution serve the exploration of the cycles only",
        {**_EXCHANGE, "grow": "gradient", "update_interval_steps": 100, **_WINDOW},
        starts_dense=True,
        prunes=True,
    ),
    "granet": Method(
        "2106.10404: start density 0.5, zero-cost neuroregeneration of 0.5 by gradient after every pruning",
        {
            "distribution": "erk",
            "initial_density": 0.5,
            **_EXCHANGE,
            "grow": "gradient",
            "drop_fraction": 0.5,
            "drop_fraction_schedule": "cosine",
            "update_interval_steps": 1000,
            "update_end_fraction": 1.0,
            **_WINDOW,
        },
        prunes=True,
        exchanges=True,
    ),
}


def method_settings(name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting of the method: its defaults, overridden by what was chosen.

    Args:
        name: A name of `METHODS`.
        chosen: Settings to override.

    Raises:
        ValueError: If the method is unknown, does not read one of the chosen settings, or one is out of range.
    """
    method = choose(METHODS, name, "method")
    for key in chosen:
        if key not in method.defaults:
            reads = ", ".join(method.defaults) or "none"
            raise ValueError(
                f"{key} has no effect with method {name!r}{suggestion(key, method.defaults)} It reads: {reads}."
            )
    settings = {**method.defaults, **chosen}
    check_settings(settings)
    return settings


_TABLES: dict[str, tuple[Mapping[str, Any], str]] = {
    "distribution": (DISTRIBUTIONS, "distribution"),
    "redistribution": (REDISTRIBUTIONS, "redistribution"),
    "drop_fraction_schedule": (FRACTIONS, "drop-fraction schedule"),
}
_SCORES: dict[str, tuple[Mapping[str, Any], str]] = {
    "drop": (DROP_SCORES, "drop score"),
    "grow": (GROW_SCORES, "grow score"),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks names and ranges of a method's settings.

    Raises:
        ValueError: In one sentence that names the setting.
    """
    for key, (table, what) in _TABLES.items():
        if key in settings:
            choose(table, settings[key], what)
    for key, (table, what) in _SCORES.items():
        if key in settings:
            choose_or_import(table, settings[key], what)
    for key in settings:
        if key == "initial_density" or key.endswith("_fraction"):
            value = settings[key]
            if not 0 <= value <= 1:
                raise ValueError(f"{key} must be in [0, 1]; got {value}.")
    interval = settings.get("update_interval_steps", 1)
    if interval < 1:
        raise ValueError(f"update_interval_steps must be at least 1; got {interval}.")
