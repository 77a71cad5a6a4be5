"""Reads what config.py declares about each setting: type, bounds, unit, remedy, and the words of a refusal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Interval, Unit

from suptickets_ray.config import Config, Remedy


@dataclass(frozen=True)
class Declaration:
    """A section or a setting of config.py."""

    kind: Any
    """Its type, without metadata."""
    field: dataclasses.Field[Any]
    metadata: tuple[Any, ...] = ()

    def find(self, of: type) -> Any:
        """Returns the metadata of a type, or None."""
        return next((value for value in self.metadata if isinstance(value, of)), None)

    @property
    def unit(self) -> str:
        """Unit of a number; empty without a unit and for other types."""
        found: Unit | None = self.find(Unit)
        return found.unit if found else ""


@cache
def declarations() -> Mapping[str, Declaration]:
    """Returns the declaration of every section and setting by dotted key, in the order of the dataclasses."""
    return dict(_declarations(Config, ""))


def _declarations(section: type, prefix: str) -> Iterator[tuple[str, Declaration]]:
    annotations = get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        key, annotation = prefix + field.name, annotations[field.name]
        if get_origin(annotation) is Annotated:
            yield key, Declaration(get_args(annotation)[0], field, annotation.__metadata__)
            continue
        yield key, Declaration(annotation, field)
        if dataclasses.is_dataclass(annotation):
            assert isinstance(annotation, type)
            yield from _declarations(annotation, f"{key}.")


def all_keys() -> list[str]:
    """Returns the dotted keys of all sections and settings, in the order of the dataclasses."""
    return list(declarations())


_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
"""The validator's types of errors, the name of the bound in their context, and its words."""


def out_of_range(key: str, kind: str, value: Any, context: Mapping[str, Any]) -> str | None:
    """Returns the refusal of a value outside its bounds or choices, or None if the validator's error is another.

    Args:
        key: The dotted key; with an index if the value is an item of a list.
        kind: The type of the validator's error.
        value: The refused value.
        context: The context of the validator's error, with the bound.
    """
    setting = declarations().get(key) or declarations().get(key.rpartition(".")[0])
    if setting is None:
        return None
    if kind == "literal_error":
        got = repr(value) if isinstance(value, str) else json.dumps(value)
        return f"{key} must be {' or '.join(choices(setting.kind))}; got {got}."
    if kind not in _BOUNDS:
        return None
    name, words = _BOUNDS[kind]
    interval = setting.find(Interval)
    requirement = f"{words} {_number(context[name])}" if interval is None else f"in {_brackets(interval)}"
    if setting.field.default is not None and NoneType in get_args(setting.kind):
        requirement = f"none or {requirement}"
    remedy = setting.find(Remedy)
    ending = f" {remedy.text}" if remedy else ""
    if setting.unit == "fraction" and 1 < value < 100:
        ending = f" Did you mean {value / 100:g}?"
    return f"{key} must be {requirement}; got {value}.{ending}"


def choices(kind: Any) -> tuple[str, ...]:
    """Returns the values of a Literal, also in a union; empty for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((found for part in get_args(kind) if (found := choices(part))), ())


def _brackets(interval: Interval) -> str:
    """Returns e.g. "(0, 1]"."""
    low = f"({interval.gt}" if interval.gt is not None else f"[{interval.ge}"
    return f"{low}, {interval.lt})" if interval.lt is not None else f"{low}, {interval.le}]"


def _number(bound: int | float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:,.15g}"
