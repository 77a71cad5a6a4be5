"""Calling the user's own functions: they take what they name, and an option that they do not take is an error."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

_KEYS_OF_FILES = ("root", "download")
"""Arguments that a recipe gives beside the options."""


def call_with(function: Callable[..., Any], what: str, offered: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Returns the function's result, called with those of `offered` that it names and with all `options`.

    Args:
        function: The user's function, or one of ours.
        what: The setting that names it, e.g. "model.name", for errors.
        offered: Arguments that the product can give.
        options: Keyword arguments that the recipe gives.

    Raises:
        ValueError: If it does not take one of the options, needs an argument that neither gives, or fails.
    """
    parameters = inspect.signature(function).parameters
    arguments = {key: value for key, value in offered.items() if key in parameters}
    section = what.partition(".")[0]
    for key in options:
        if not takes(function, key):
            known = ", ".join(key for key in parameters if key not in offered) or "none"
            raise ValueError(f"{section}.options.{key} has no effect: {what} does not take it. Known: {known}.")
    if function.__module__.startswith("suptickets_ray."):
        _check_types(function, section, options)
    arguments |= options
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and key not in arguments
    ]
    if missing:
        key = missing[0] if missing[0] in _KEYS_OF_FILES else f"options.{missing[0]}"
        raise ValueError(f"{section}.{key} must be given: the function of {what} needs it.")
    try:
        return function(**arguments)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{what} must work with these options; it failed: {type(error).__name__}: {error}") from error


def _check_types(function: Callable[..., Any], section: str, options: Mapping[str, Any]) -> None:
    """Compares options with the annotations of one of our own functions. Raises ValueError if one does not fit."""
    kinds = get_type_hints(function)
    for key, value in options.items():
        if key not in kinds:
            continue
        try:
            TypeAdapter(kinds[key], config={"strict": True, "arbitrary_types_allowed": True}).validate_python(value)
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"].removeprefix("Input should be ")
            raise ValueError(f"{section}.options.{key} must be {message}; got {value!r}.") from None


def takes(function: Callable[..., Any], key: str) -> bool:
    """Returns whether a function has a parameter of this name, or takes any."""
    parameters = inspect.signature(function).parameters
    return key in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
