"""Sparse training inside other libraries' trainers. Each module needs its library, which is an extra."""
