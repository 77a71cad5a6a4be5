"""Sparse training methods as data: which parts each one is made of, and its source's defaults.

A new method of known parts is one row. A method reads exactly the settings listed in its `defaults`; any other
setting would do nothing, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suptickets_ray.lookup import choose, suggestion

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
        ValueError: If the method is unknown or does not read one of the chosen settings.
    """
    method = choose(METHODS, name, "method")
    for key in chosen:
        if key not in method.defaults:
            reads = ", ".join(method.defaults) or "none"
            raise ValueError(
                f"{key} has no effect with method {name!r}{suggestion(key, method.defaults)} It reads: {reads}."
            )
    return {**method.defaults, **chosen}
