"""Merging tickets into one network behind the gate, and saying whether it paid. No Ray."""
