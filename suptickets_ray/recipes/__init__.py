"""Recipes: read files and overrides, resolve defaults, list settings."""
