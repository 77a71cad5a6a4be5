"""Splits the arguments of a command into a recipe and overrides."""

from __future__ import annotations

from collections.abc import Sequence


def recipe_and_overrides(settings: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the recipe, if any, and the overrides of a command. Raises ValueError if there are two recipes."""
    recipes = [text for text in settings if _is_recipe(text)]
    if len(recipes) > 1:
        raise ValueError(f"there must be at most one recipe; got {', '.join(recipes)}. Write overrides as key=value.")
    return recipes[0] if recipes else None, [text for text in settings if text not in recipes]


def _is_recipe(text: str) -> bool:
    key, mark, _ = text.partition("=")
    return not mark or text.endswith((".yaml", ".yml")) or "://" in key  # s3://bucket/best.yaml?region=us-east-1
