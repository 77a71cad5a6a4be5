"""Timing side by side: whatever disturbs the machine disturbs all contestants alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds_of(
    contestants: dict[str, Callable[[], object]],
    repeats: int,
    prepare: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each by a clock, measured in turns after a round that does not count; nor does preparing."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            prepare()
            started = clock()
            run()
            if repeat:
                times[name].append(clock() - started)
    return {name: statistics.median(some) for name, some in times.items()}
