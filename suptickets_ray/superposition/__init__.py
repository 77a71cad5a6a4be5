"""Merges tickets into one network behind the gate, and assesses the result. No Ray."""
