"""Command lines of the paper's public code, translated into recipes."""
