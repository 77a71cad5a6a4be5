"""Converts recipes, dicts and overrides to Config and back. Only this module uses the validator, pydantic."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from suptickets_ray.config import PLACEMENT_KEYS, Config
from suptickets_ray.lookup import suggestion
from suptickets_ray.recipes.files import dump_yaml, find_recipe, parse_yaml, read_recipe, read_stored_recipe

_ADAPTER = TypeAdapter(Config)


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
    changes = [_parse_override(text) for text in overrides]
    if "base" in settings or any(keys[0] == "base" for keys, _ in changes):
        raise ValueError(
            "base must be set in a recipe file; got it in a mapping, a stored recipe or an override. Leave it out."
        )
    _drop_settings_of_replaced_choices(settings, changes)
    for keys, value in changes:
        _set(settings, keys, value)
    return settings


def _resolved(settings: dict[str, Any]) -> Config:
    config = _validate(settings)
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


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"an override must be dotted.key=value; got {text!r}. Write e.g. train.epochs=20.")
    try:
        return key.split("."), parse_yaml(value)
    except yaml.YAMLError as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(
            f"the value of {key} must be YAML; got {value[:80]!r}: {reason}. If it is text, put it in quotes."
        ) from error


def _set(settings: dict[str, Any], keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = settings.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(
                f"{'.'.join(keys)} must be the key of a setting; {'.'.join(keys[: depth + 1])} is not a section."
            )
        settings = inner
    settings[keys[-1]] = value


def _methods() -> Mapping[str, Any]:
    from suptickets_ray.sparse.methods import METHODS  # imports torch

    return METHODS


def _synthetic_shapes() -> Mapping[str, Any]:
    from suptickets_ray.training.data.synthetic import SHAPES  # imports torch

    return SHAPES


_KEPT_ACROSS_METHODS = {"name", "density", "dense_layers", "mask_embeddings", "update_interval_steps"}


def _drop_settings_of_replaced_choices(settings: dict[str, Any], changes: list[tuple[list[str], Any]]) -> None:
    """Drops the recipe's settings of a method, model or data set that an override replaces with another one.

    The new method has the defaults of its source. It keeps density, dense layers and update interval, which belong to
    the problem, and also the initial masks if both methods have the same default. Otherwise `method.name=gmp` on a RigL
    recipe would be refused because of RigL's drop fraction, and `data.name=mine:load` would get the label noise of the
    digits recipe. Synthetic data takes shape, number of classes and augmentation of the data set that it replaces.
    Settings of the overrides themselves are never dropped: one without an effect is refused.
    """
    chosen = {tuple(keys): value for keys, value in changes}

    def replaced(section: str) -> str | None:
        """Returns the section's new name if an override changes it."""
        new = chosen.get((section, "name"))
        old = settings.get(section)
        return new if isinstance(new, str) and isinstance(old, dict) and old.get("name") != new else None

    tickets = settings.get("tickets")
    tickets = tickets if isinstance(tickets, dict) else {}
    if (new_name := replaced("method")) is not None and new_name in (methods := _methods()):
        section = settings["method"]
        old_method, new_method = methods.get(str(section.get("name"))), methods[new_name]
        kept = _KEPT_ACROSS_METHODS & {"name", "density", *new_method.defaults}
        if new_method.sparse:
            kept |= {"dense_layers", "mask_embeddings"}
        if old_method is not None and old_method.defaults.get("distribution") == new_method.defaults.get(
            "distribution"
        ):
            kept |= {"distribution", "regrow_fraction"}
        settings["method"] = section = {key: value for key, value in section.items() if key in kept}
        if not new_method.sparse:
            section["density"] = 1.0
        elif old_method is not None and not old_method.sparse:
            section.pop("density", None)
        if old_method is None or old_method.can_explore != new_method.can_explore:
            tickets.pop("explore", None)
            tickets.pop("exploration_fraction", None)
        if not new_method.exchanges:
            tickets.pop("update_masks", None)
    if chosen.get(("tickets", "explore")) is False:
        tickets.pop("exploration_fraction", None)
    if chosen.get(("tickets", "cyclic_lr")) is False:
        tickets.pop("lr_high", None)
    superposition = settings.get("superposition")
    new_rule = chosen.get(("superposition", "method"))
    if isinstance(superposition, dict) and new_rule is not None:
        if new_rule != "cima":
            superposition.pop("cima_factor", None)
        if "greedy" in (new_rule, superposition.get("method")) and new_rule != superposition.get("method"):
            superposition.pop("gate_tolerance", None)  # greedy sets its tolerance itself
    for name, keys in _SPECIFIC_KEYS.items():
        if (new := replaced(name)) is None:
            continue
        old = settings[name].get("name")
        is_stand_in = name == "data" and new == "synthetic" and old in _synthetic_shapes()
        for key in keys:
            # Split and augmentation also fit the same images in another format, and synthetic images of their shape.
            if not (key in _IMAGE_KEYS and (is_stand_in or (name == "data" and new in ("parquet", "image_folder")))):
                settings[name].pop(key, None)
        sets_shape = any(keys[:2] == ["data", "options"] and keys[2:] in _SHAPE_OPTIONS for keys, _ in changes)
        if is_stand_in and not sets_shape:
            settings[name]["options"] = {"like": old}


_IMAGE_KEYS = ("crop_padding", "crop_padding_mode", "flip", "validation_share")
_SPECIFIC_KEYS = {
    "model": ("options", "initialization"),
    "data": ("options", "root", "download", "num_train_examples", "label_noise", "split_seed", *_IMAGE_KEYS),
}
"""Settings that are specific to one model or data set and do not apply to another."""
_SHAPE_OPTIONS: tuple[list[str], ...] = ([], ["like"], ["shape"], ["num_classes"])
"""Paths of the options that set the shape of synthetic data. The empty path replaces all options."""


def _validate(settings: dict[str, Any]) -> Config:
    superposition = settings.get("superposition")
    if isinstance(superposition, dict) and superposition.get("gate_tolerance") == "none":
        settings = {**settings, "superposition": {**superposition, "gate_tolerance": None}}
    try:
        return _ADAPTER.validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        raise ValueError(_error_text(error)) from None


def _error_text(error: ValidationError) -> str:
    """Returns the first error of the validator as a message of this package."""
    finding = error.errors(include_url=False)[0]
    # If a setting has several types, the last part of the location is the type that was tried.
    key = ".".join(str(part) for part in finding["loc"] if part not in ("int", "list[int]"))
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    if finding["type"] == "missing":
        return f"{key} must be given; it is missing from the recipe. Add it, or start from the built-in digits recipe."
    if finding["type"] == "unexpected_keyword_argument":
        return f"unknown key {key!r}{_hint(key, finding['input'])}"
    got = json.dumps(finding["input"])
    if finding["type"].startswith("dataclass"):
        return f"{key or 'the recipe'} must be a section, a mapping of keys to values; got {got}."
    return f"{key} must be {_KINDS.get(finding['type'], finding['msg'])}; got {got}."


_ALIASES = {
    "lr": "train.lr",
    "learning_rate": "train.lr",
    "epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "momentum": "train.momentum",
    "wd": "train.weight_decay",
    "l2": "train.weight_decay",
    "weight_decay": "train.weight_decay",
    "batch": "data.batch_size",
    "batch_size": "data.batch_size",
    "bs": "data.batch_size",
    "dataset": "data.name",
    "data_dir": "data.root",
    "data_path": "data.root",
    "arch": "model.name",
    "density": "method.density",
    "gpus": "cluster.gpus_per_worker",
    "num_gpus": "cluster.gpus_per_worker",
    "nproc_per_node": "cluster.num_workers",
    "world_size": "cluster.num_workers",
    "output_dir": "storage",
    "out": "storage",
    "run_name": "name",
    "warmup": "train.warmup_epochs",
    "fp16": "train.precision",
    "amp": "train.precision",
    "scheduler": "train.lr_schedule",
    "grad_clip": "train.clip_norm",
}
"""Names of the same settings in other tools."""
_EXPLANATIONS = {
    "optimizer": " The optimizer is SGD; train.lr, train.momentum and train.weight_decay set it.",
    "workers": " cluster.num_workers sets the ranks of pretraining; data.reader_threads sets the prefetch threads.",
    "num_workers": " cluster.num_workers sets the ranks of pretraining; data.reader_threads sets the prefetch threads.",
    "device": " cluster.gpus_per_worker=1 trains on GPUs, the default 0 on CPUs.",
}
_RENAMED = {
    "tickets.chains": "tickets.num_chains",
    "search.seeds": "search.num_seeds",
    "data.train_size": "data.num_train_examples",
    "cluster.fold_shares": "cluster.num_merge_shards",
    "cluster.wait_minutes": "cluster.resource_timeout_minutes",
    "cluster.keep_head_free": "cluster.exclude_head_node",
    "superposition.scope": "superposition.prune_scope",
    "superposition.prune": "superposition.prune_at",
}
"""Old keys of recipes from before version 0.1.0."""
_RENAMED_VALUES = {"superposition.prune": {"each": "every_ticket", "last": "end"}}
_SPARSITIES = {
    "sparsity": "method.density",
    "final_sparsity": "method.density",
    "init_sparsity": "method.initial_density",
}


def _hint(key: str, value: Any) -> str:
    """Returns the text that suggests an existing key for an unknown one: by meaning, or else by spelling."""
    leaf = key.rpartition(".")[2].lower().replace("-", "_")
    if key in _RENAMED:
        value = _RENAMED_VALUES.get(key, {}).get(value) if isinstance(value, str) else None
        return f"; did you mean {_RENAMED[key]}={value}?" if value else f"; did you mean {_RENAMED[key]!r}?"
    if leaf in _SPARSITIES:
        right = _SPARSITIES[leaf]
        if isinstance(value, (int, float)) and 0 <= value < 1:
            return f"; did you mean {right}={1 - value:.10g}? Density is the fraction of active weights, 1 - sparsity."
        return f"; did you mean {right}? Density is the fraction of active weights, 1 - sparsity."
    if leaf in _EXPLANATIONS and key not in all_keys():
        return f".{_EXPLANATIONS[leaf]}"
    if leaf in _ALIASES and _ALIASES[leaf] != key:
        return f"; did you mean {_ALIASES[leaf]!r}?"
    return suggestion(key, all_keys())


_KINDS = {
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (for a number in double quotes: key='\"1\"')",
    "list_type": "a list, e.g. [first]",
    "dict_type": "a mapping of names to values",
}


def all_keys(section: type = Config, prefix: str = "") -> list[str]:
    """Returns the dotted keys of all sections and settings, in the order of the dataclasses."""
    kinds = get_type_hints(section)
    keys = []
    for field in dataclasses.fields(section):
        keys.append(prefix + field.name)
        if dataclasses.is_dataclass(kinds[field.name]):
            keys += all_keys(kinds[field.name], f"{prefix}{field.name}.")
    return keys
