"""Hyperparameter search: search spaces, work shared by trials, and results. Pure decisions without Ray."""
