"""Sparse training methods as data: the parts of each method, and its source's defaults.

A new method of known parts takes one row. A method reads exactly the settings listed in its `defaults`, and those of a
chosen criterion. Any other setting would have no effect, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from suptickets_ray.lookup import choose, choose_or_import, suggestion
from suptickets_ray.sparse.criteria import GROW_SCORES, REDISTRIBUTIONS, SALIENCY_SCORES, needs
from suptickets_ray.sparse.initial_masks import INITIAL_MASKS, REGROWING
from suptickets_ray.sparse.schedules import FRACTIONS
from suptickets_ray.sparse.topology import SCOPES

_EXCHANGE = {"drop": "magnitude", "redistribution": "none"}
_WINDOW = {"prune_start_fraction": 0.0, "prune_end_fraction": 0.5}


@dataclass(frozen=True)
class Method:
    """One row of `METHODS`."""

    source: str
    """Source of the method and its defaults."""
    defaults: Mapping[str, Any]
    """Every setting that the method reads, with its default."""
    sparse: bool = True
    """Whether the network is sparse; otherwise it is trained at density 1."""
    starts_dense: bool = False
    """Whether training starts with all connections, whatever the target density."""
    prunes: bool = False
    """Whether the density falls over the prune window."""
    exchanges: bool = False
    """Whether every update drops and grows."""

    @property
    def can_explore(self) -> bool:
        """Whether the method has criteria for the exploration that opens a cycle."""
        return "grow" in self.defaults


_SET = {
    "distribution": "erk",
    **_EXCHANGE,
    "grow": "random",
    "drop_fraction": 0.3,
    "drop_fraction_schedule": "constant",
    "update_interval_steps": 100,
    "update_end_fraction": 1.0,
}
_RIGL = _SET | {"grow": "gradient", "drop_fraction_schedule": "cosine", "update_end_fraction": 0.75}
_ITOP = {"drop_fraction": 0.5, "drop_fraction_schedule": "cosine", "update_end_fraction": 1.0}
_GMP = {**_EXCHANGE, "grow": "gradient", "update_interval_steps": 100, **_WINDOW, "prune_scope": "global"}
_GRANET = {
    "distribution": "erk",
    "initial_density": 0.5,
    **_EXCHANGE,
    "grow": "gradient",
    "drop_fraction": 0.5,
    "drop_fraction_schedule": "cosine",
    "update_interval_steps": 1000,
    "update_end_fraction": 1.0,
    **_WINDOW,
    "prune_scope": "global",
}

METHODS: dict[str, Method] = {
    "dense": Method("plain training", {}, sparse=False),
    "static": Method("fixed masks, e.g. 1911.11134, section 4", {"distribution": "erk"}),
    "set": Method("Mocanu et al. 2018: zeta 0.3, random growth", _SET, exchanges=True),
    "rigl": Method(
        "1911.11134, section 4: delta T 100, alpha 0.3, cosine, until 75 % of the steps", _RIGL, exchanges=True
    ),
    "itop_set": Method(
        "2102.02887: SET with a long interval, to the end of training; use small batches",
        _SET | _ITOP | {"update_interval_steps": 1500},
        exchanges=True,
    ),
    "itop_rigl": Method(
        "2102.02887: RigL with a long interval, to the end of training; use small batches",
        _RIGL | _ITOP | {"update_interval_steps": 4000},
        exchanges=True,
    ),
    "gmp": Method(
        "1710.01878, all layers ranked together; drop, grow and redistribution serve the cycles' exploration only",
        _GMP,
        starts_dense=True,
        prunes=True,
    ),
    "gmp_uniform": Method(
        "1710.01878, each layer to the same density; the last linear layer keeps 0.2 (1902.09574, section 4)",
        _GMP | {"prune_scope": "layer"},
        starts_dense=True,
        prunes=True,
    ),
    "granet": Method(
        "2106.10404: start density 0.5, zero-cost neuroregeneration of 0.5 by gradient after every pruning",
        _GRANET,
        prunes=True,
        exchanges=True,
    ),
    "granet_uniform": Method(
        "2106.10404: as granet, each layer pruned to the same density; the last linear layer keeps 0.2",
        _GRANET | {"distribution": "uniform", "prune_scope": "layer"},
        prunes=True,
        exchanges=True,
    ),
}


def readable_settings(method: Method, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting that a method reads, with its default, given the chosen settings.

    Raises:
        ValueError: If a chosen criterion is unknown.
    """
    settings = {**method.defaults, **{key: value for key, value in chosen.items() if key in method.defaults}}
    reads = dict(method.defaults)
    if settings.get("distribution") in REGROWING:
        reads["regrow_fraction"] = 0.5
    if settings.get("drop") == "mest":
        reads["drop_gradient_weight"] = 1.0
    if settings.get("grow") == "mix":
        reads["grow_gradient_share"] = 0.5
    if "momentum" in criteria_needs(settings):
        reads["momentum_decay"] = 0.9
    return reads


def criteria_needs(settings: Mapping[str, Any]) -> frozenset[str]:
    """Returns which of "gradient" and "momentum" the criteria of a method's settings read.

    Raises:
        ValueError: If a criterion is unknown.
    """
    found: frozenset[str] = frozenset()
    for key, (table, what) in _CRITERIA.items():
        if key in settings:
            found |= needs(choose_or_import(table, settings[key], what))
    return found


def method_settings(name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting of the method: its defaults, overridden by the chosen settings.

    Args:
        name: A name of `METHODS`.
        chosen: Settings to override.

    Raises:
        ValueError: If the method is unknown, does not read one of the chosen settings, or one is out of range.
    """
    reads = readable_settings(choose(METHODS, name, "method"), chosen)
    for key in chosen:
        if key not in reads:
            raise ValueError(
                f"{key} has no effect with method {name!r}{suggestion(key, reads)} It reads: "
                f"{', '.join(reads) or 'none'}."
            )
    settings = {**reads, **chosen}
    check_settings(settings)
    return settings


_CRITERIA: dict[str, tuple[Mapping[str, Callable[..., Any]], str]] = {
    "drop": (SALIENCY_SCORES, "drop score"),
    "grow": (GROW_SCORES, "grow score"),
    "redistribution": (REDISTRIBUTIONS, "redistribution"),
}
_TABLES: dict[str, tuple[Mapping[str, Any], str]] = {
    "distribution": (INITIAL_MASKS, "distribution"),
    "drop_fraction_schedule": (FRACTIONS, "drop-fraction schedule"),
    "prune_scope": (SCOPES, "prune scope"),
}
_OTHER_FRACTIONS = {"initial_density", "grow_gradient_share"}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks names and ranges of a method's settings.

    Raises:
        ValueError: If a name is unknown or a value is out of range; the error names the setting.
    """
    for key, (table, what) in _TABLES.items():
        if key in settings:
            choose(table, settings[key], what)
    criteria_needs(settings)
    for key, value in settings.items():
        if (key in _OTHER_FRACTIONS or key.endswith("_fraction")) and not 0 <= value <= 1:
            raise ValueError(f"{key} must be in [0, 1]; got {value}.")
    if not 0 <= settings.get("momentum_decay", 0) < 1:
        raise ValueError(f"momentum_decay must be in [0, 1); got {settings['momentum_decay']}.")
    if settings.get("drop_gradient_weight", 1) <= 0:
        raise ValueError(
            f"drop_gradient_weight must be above 0; got {settings['drop_gradient_weight']}. For 0 use drop 'magnitude'."
        )
    interval = settings.get("update_interval_steps", 1)
    if interval < 1:
        raise ValueError(f"update_interval_steps must be at least 1; got {interval}.")
