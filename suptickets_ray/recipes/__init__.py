"""Recipes: reading files and overrides, resolving defaults, listing settings."""
