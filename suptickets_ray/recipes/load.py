"""Converts recipes, dicts and overrides to Config and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from suptickets_ray.config import PLACEMENT_KEYS, Config
from suptickets_ray.recipes.files import find_recipe, read_recipe, read_stored_recipe
from suptickets_ray.recipes.overrides import drop_settings_of_replaced_choices, parse_override, set_value
from suptickets_ray.recipes.validation import validate
from suptickets_ray.recipes.yaml_text import dump_yaml, parse_yaml


def load_config(recipe: str | Path | Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> Config:
    """Returns the resolved experiment of a recipe and its overrides. Checks everything that needs no data.

    Args:
        recipe: A YAML file, a URI on an object store, the name of a shipped recipe, a mapping of sections, or None for
            the built-in digits recipe.
        overrides: Texts "dotted.key=value" with YAML values. The last one of a key wins.

    Raises:
        ValueError: If a setting is invalid. The message names the key, the requirement, the value and a remedy.
    """
    return _resolved(read_settings(recipe, overrides))


def read_settings(recipe: str | Path | Mapping[str, Any] | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the settings of a recipe and its overrides, before validation and without defaults.

    Args:
        recipe: As for `load_config`.
        overrides: As for `load_config`.

    Raises:
        ValueError: If the recipe cannot be read or an override is malformed.
    """
    if isinstance(recipe, Mapping):
        settings: dict[str, Any] = json.loads(json.dumps(recipe))
    elif isinstance(recipe, str) and "://" in recipe:
        settings = read_stored_recipe(recipe)
    else:
        settings = read_recipe(find_recipe(recipe))
    changes = [parse_override(text) for text in overrides]
    if "base" in settings or any(keys[0] == "base" for keys, _ in changes):
        raise ValueError(
            "base must be set in a recipe file; got it in a mapping, a stored recipe or an override. Leave it out."
        )
    drop_settings_of_replaced_choices(settings, changes)
    for keys, value in changes:
        set_value(settings, keys, value)
    return settings


def _resolved(settings: dict[str, Any]) -> Config:
    config = validate(settings)
    # Imported here because it imports torch: an unknown key or a value of the wrong type is reported without it.
    from suptickets_ray.recipes.resolve import resolve

    return resolve(config)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the experiment as plain values, without unset settings."""
    return {
        key: {k: v for k, v in value.items() if v is not None or k == "gate_tolerance"}
        if isinstance(value, dict)
        else value
        for key, value in dataclasses.asdict(config).items()
    }


def from_dict(settings: Mapping[str, Any]) -> Config:
    """Returns the experiment of a dict that `to_dict` returned. Raises ValueError if a setting is invalid."""
    return _resolved(dict(settings))


def from_yaml(text: str) -> Config:
    """Returns the experiment of a text that `to_yaml` returned. Raises ValueError if the text is invalid."""
    try:
        settings = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"a stored recipe must be safe YAML; got: {' '.join(str(error).split())}.") from error
    return from_dict(settings if isinstance(settings, dict) else {})


def to_yaml(config: Config) -> str:
    """Returns the experiment as a YAML recipe, from which `load_config` reads an equal experiment."""
    return dump_yaml(to_dict(config))


def config_digest(config: Config) -> str:
    """Returns the SHA-256 of all settings that can change the result. Equal digests give equal tickets."""
    relevant = {key: value for key, value in flatten(to_dict(config)) if changes_results(key)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def differing_keys(old: Config, new: Config) -> list[str]:
    """Returns the sorted dotted keys that differ between two experiments and can change the result."""
    before, after = dict(flatten(to_dict(old))), dict(flatten(to_dict(new)))
    return sorted(
        key
        for key in {*before, *after}
        if changes_results(key) and before.get(key, _MISSING) != after.get(key, _MISSING)
    )


def changes_results(key: str) -> bool:
    """Returns whether a setting can change a run's result. Runs do not read the section `search`."""
    sections = ("search.", "cluster.worker_resources.", "cluster.explorer_resources.")
    return key not in PLACEMENT_KEYS and not key.startswith(sections)


_MISSING = object()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and values of nested sections."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
