"""Checks settings against the annotations of config.py with pydantic, and words its errors."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from suptickets_ray.config import Config
from suptickets_ray.recipes.declarations import all_keys, out_of_range
from suptickets_ray.recipes.hints import hint

_ADAPTER = TypeAdapter(Config)


def check(config: Config) -> None:
    """Checks an experiment that was created directly or by `dataclasses.replace`. Raises ValueError as `validate`."""
    validate(dataclasses.asdict(config))


def validate(settings: dict[str, Any]) -> Config:
    """Returns the experiment of nested settings, with the defaults of config.py.

    Raises:
        ValueError: If a key is unknown or missing, a value has the wrong type or is out of range, or settings
            contradict each other.
    """
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
        return f"unknown key {key!r}{hint(key, finding['input'], all_keys())}"
    got = json.dumps(finding["input"])
    if finding["type"].startswith("dataclass"):
        remedy = f" Did you mean {key}.name={finding['input']}?" if f"{key}.name" in all_keys() else ""
        return f"{key or 'the recipe'} must be a section, a mapping of keys to values; got {got}.{remedy}"
    if (refusal := out_of_range(key, finding["type"], finding["input"], finding.get("ctx", {}))) is not None:
        return refusal
    return f"{key} must be {_KINDS.get(finding['type'], finding['msg'])}; got {got}."


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


def sentences() -> dict[str, str]:
    """Returns the sentence under each setting in config.py by dotted key, from the validator's JSON schema."""
    schema = _ADAPTER.json_schema()
    found = {}
    for key in all_keys():
        section, _, name = key.rpartition(".")
        part = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]] if section else schema
        if "description" in part["properties"][name]:
            found[key] = part["properties"][name]["description"]
    return found
