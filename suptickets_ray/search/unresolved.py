"""A recipe's settings without those that follow from the others, so that a point of a search fills them in anew."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import from_dict, to_dict
from suptickets_ray.recipes.resolve import resolve

_SECTIONS = ("method", "tickets", "superposition")
"""Those in which `resolve` fills in what was left out."""


def chosen_settings(config: Config) -> dict[str, Any]:
    """Returns what `to_dict` gives, without what `resolve` would fill in if it were left out.

    A point that changes train.epochs then has the defaults of its own epochs, not those of the recipe that it starts
    from. Whoever wrote a default out by hand is taken not to have: a resolved recipe no longer tells the two apart.
    """
    settings: dict[str, Any] = json.loads(_chosen(json.dumps(to_dict(config))))
    return settings


@lru_cache(maxsize=8)
def _chosen(text: str) -> str:
    """The same for JSON text; every point and seed of a search asks for the same recipe."""
    wanted = config = from_dict(json.loads(text))
    for name in _SECTIONS:
        for field in fields(getattr(config, name)):
            section = getattr(config, name)
            if field.default is not None or getattr(section, field.name) is None:
                continue
            without = replace(config, **{name: replace(section, **{field.name: None})})
            try:
                follows = resolve(without) == wanted
            except ValueError:
                continue
            if follows:
                config = without
    return json.dumps(to_dict(config))
