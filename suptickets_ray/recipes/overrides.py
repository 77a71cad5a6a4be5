"""Overrides "dotted.key=value", and what they leave out of the recipe that they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from suptickets_ray.recipes.yaml_text import parse_yaml


def parse_override(text: str) -> tuple[list[str], Any]:
    """Returns the parts of the key and the YAML value of "dotted.key=value". Raises ValueError on another form."""
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


def replaced_overrides(overrides: Iterable[str]) -> list[str]:
    """Returns a sentence about every override that has no effect, because a later one sets its key or its section."""
    keys = [(text, text.partition("=")[0].split(".")) for text in overrides]
    return [
        f"{text} has no effect, because {later} follows. Leave one of them out."
        for index, (text, key) in enumerate(keys)
        for later in [next((t for t, k in keys[index + 1 :] if key[: len(k)] == k), None)]
        if later is not None
    ]


def set_value(settings: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets a value in nested settings, in place. Raises ValueError if a part of the key is not a section."""
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


def drop_settings_of_replaced_choices(settings: dict[str, Any], changes: list[tuple[list[str], Any]]) -> None:
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
            kept |= {"compute", "dense_layers", "mask_embeddings"}
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
    train, new_optimizer = settings.get("train"), chosen.get(("train", "optimizer"))
    if isinstance(train, dict) and new_optimizer not in (None, train.get("optimizer", "sgd")):
        train.pop("momentum", None)
        train.pop("optimizer_options", None)
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
    "task": ("options",),
    "model": ("options", "initialization", "weights", "freeze"),
    "data": ("options", "root", "download", "num_train_examples", "label_noise", "split_seed", *_IMAGE_KEYS),
}
"""Settings that are specific to one task, model or data set and do not apply to another."""
_SHAPE_OPTIONS: tuple[list[str], ...] = ([], ["like"], ["shape"], ["num_classes"])
"""Paths of the options that set the shape of synthetic data. The empty path replaces all options."""
