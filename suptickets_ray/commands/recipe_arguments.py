"""Splits the arguments of a command into a recipe and overrides."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console


def recipe_and_overrides(settings: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the recipe, if any, and the overrides of a command. Raises ValueError if there are two recipes."""
    recipes = [text for text in settings if _is_recipe(text)]
    if len(recipes) > 1:
        raise ValueError(f"there must be at most one recipe; got {', '.join(recipes)}. Write overrides as key=value.")
    overrides = [text for text in settings if text not in recipes]
    warn_of_replaced(overrides)
    return recipes[0] if recipes else None, overrides


def warn_of_replaced(overrides: Sequence[str]) -> None:
    """Prints a warning for every override that a later one replaces."""
    from suptickets_ray.recipes.overrides import replaced_overrides

    for sentence in replaced_overrides(overrides):
        Console(stderr=True, highlight=False).print(f"WARNING: {sentence}", markup=False, soft_wrap=True)


def _is_recipe(text: str) -> bool:
    key, mark, _ = text.partition("=")
    return not mark or text.endswith((".yaml", ".yml")) or "://" in key  # s3://bucket/best.yaml?region=us-east-1
