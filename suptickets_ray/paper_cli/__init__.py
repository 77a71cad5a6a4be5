"""Translates command lines of the paper's public code into recipes."""
