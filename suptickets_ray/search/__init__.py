"""Searching for better settings: spaces, what trials share, and what came of it. Pure decisions; no Ray."""
