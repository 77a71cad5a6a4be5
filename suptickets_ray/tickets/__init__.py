"""Tickets as values: their Arrow form, their store, and how they are superposed. No Ray."""
