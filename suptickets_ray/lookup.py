"""Finds a strategy by name, or imports a user-defined one, with the same error messages for every table."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Strategy = TypeVar("Strategy")


def suggestion(name: object, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" with the most similar known name, or "." if none is similar."""
    matches = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
    # Swapped letters are the most likely typing error: of erk and er, "ekr" means erk.
    matches.sort(key=lambda word: sorted(word) != sorted(str(name)))
    return f"; did you mean {matches[0]!r}?" if matches else "."


def choose(table: Mapping[str, Strategy], name: str, what: str) -> Strategy:
    """Returns the row of `table` called `name`.

    Args:
        table: Strategies of one kind by name.
        name: Name from the user.
        what: Name of the kind for the error message, e.g. "grow score".

    Raises:
        ValueError: If no row has this name. The message lists all names and suggests the most similar one.
    """
    if name in table:
        return table[name]
    raise ValueError(f"unknown {what} {name!r}{suggestion(name, table)} Known: {', '.join(table)}.")


def choose_or_import(table: Mapping[str, Callable[..., Any]], name: str, what: str) -> Callable[..., Any]:
    """Returns the row of `table` called `name`, or the user-defined function "package.module:function".

    Args:
        table: Strategies of one kind by name.
        name: Name from the user.
        what: Name of the kind for the error message, e.g. "grow score".

    Raises:
        ValueError: If the name is neither in the table nor importable. The message names the part that failed.
    """
    if ":" not in name:
        try:
            return choose(table, name, what)
        except ValueError as error:
            raise ValueError(f"{error} A user-defined one is named 'package.module:function'.") from None
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{what} {name!r} must be importable; importing {module_name!r} failed: {reason}. "
            "Run the command in the folder that holds the module, or install its package."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        candidates = [key for key in vars(module) if callable(getattr(module, key)) and not key.startswith("_")]
        raise ValueError(
            f"{what} {name!r} must name a function of {module_name!r}; it has no function "
            f"{function_name!r}{suggestion(function_name, candidates)}"
        )
    found: Callable[..., Any] = function
    return found
