"""Removes resolved defaults from a recipe, so that each point of a search resolves them again."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import from_dict, to_dict
from suptickets_ray.recipes.resolve import resolve

_SECTIONS = ("method", "tickets", "superposition")
"""Sections in which `resolve` fills in defaults."""


def chosen_settings(config: Config) -> dict[str, Any]:
    """Returns the dict of `to_dict` without the defaults that `resolve` fills in.

    A point that changes train.epochs then gets the defaults for its number of epochs, not those of the base recipe.
    Explicitly written defaults are removed too, because a resolved recipe does not distinguish them.
    """
    settings: dict[str, Any] = json.loads(_chosen(json.dumps(to_dict(config))))
    return settings


@lru_cache(maxsize=8)
def _chosen(text: str) -> str:
    """Does the work of `chosen_settings` on JSON text. Cached, because all points and seeds of a search need it."""
    expected = config = from_dict(json.loads(text))
    for name in _SECTIONS:
        for field in fields(getattr(config, name)):
            section = getattr(config, name)
            if field.default is not None or getattr(section, field.name) is None:
                continue
            without = replace(config, **{name: replace(section, **{field.name: None})})
            try:
                is_default = resolve(without) == expected
            except ValueError:
                continue
            if is_default:
                config = without
    return json.dumps(to_dict(config))
