"""Numbers as short words: durations and sizes."""

from __future__ import annotations


def time_text(seconds: float) -> str:
    """Returns a duration as h:mm:ss, rounded to seconds."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{left:02d}"


def size_text(size: float) -> str:
    """Returns a number of bytes with a decimal unit, e.g. "1.5 MB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
