"""Calls user-defined functions with the arguments that they name; an unknown option is an error."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

_FILE_KEYS = ("root", "download")
"""Arguments that a recipe sets outside `options`."""


def call_with(function: Callable[..., Any], what: str, offered: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Calls a function with all `options` and with the entries of `offered` that it names, and returns its result.

    Args:
        function: A user-defined or built-in function.
        what: Setting that names the function, e.g. "model.name", for errors.
        offered: Arguments that this package can pass.
        options: Keyword arguments from the recipe.

    Raises:
        ValueError: If the function does not take an option, needs an argument that is not given, or fails.
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
        key = missing[0] if missing[0] in _FILE_KEYS else f"options.{missing[0]}"
        raise ValueError(f"{section}.{key} must be given; the function of {what} needs it.")
    try:
        return function(**arguments)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"Cannot call the function of {what} with these options: {reason}") from error


def _check_types(function: Callable[..., Any], section: str, options: Mapping[str, Any]) -> None:
    """Checks options against the annotations of a built-in function. Raises ValueError if one does not fit."""
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
    """Returns whether a function has a parameter of this name, or takes any keyword."""
    parameters = inspect.signature(function).parameters
    return key in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
