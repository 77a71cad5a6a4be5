"""What does a search cost beside as many independent runs?

    python experiments/benchmarks/tuning.py [TRIALS_TIMED]

A search over 4 cycle lengths x 5 CIMA factors, 20 trials, on the digits recipe with a budget that all lengths divide.
Beside it TRIALS_TIMED of the same 20 points as runs of their own (4 when left out: one of each length), whose mean
stands for all 20. Some minutes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace

from rich.console import Console

from suptickets_ray import load_config, train, tune
from suptickets_ray.recipes.declarations import all_keys
from suptickets_ray.search.points import config_of, draw_points
from suptickets_ray.search.space import DEFAULT_SPACE, parse_space

RECIPE = ["train.epochs=240", "tickets.cycle_rate=0.1", "tickets.cycle_epochs=8"]


def main() -> None:
    """Runs the search and some of its points alone, and prints the ratio."""
    num_timed = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as storage:
        base = load_config(None, [*RECIPE, f"storage={storage}", "name=search"])
        began = time.perf_counter()
        result = tune(base).result
        searched = time.perf_counter() - began
        points = draw_points(parse_space(DEFAULT_SPACE, all_keys()), "grid", None, 0)
        seconds = []
        for number, point in enumerate(points[:: len(points) // num_timed][:num_timed]):
            alone = replace(config_of(base, point), name=f"alone-{number}")
            began = time.perf_counter()
            train(alone)
            seconds.append(time.perf_counter() - began)
    alone_seconds = statistics.mean(seconds)
    trials = len(result["trials"])
    console.print(
        f"{trials} trials: {result['pretrainings']} pretrainings and {result['cycles_trained']} cycles trained"
    )
    console.print(f"the search: {searched:.0f} s; a run alone: {alone_seconds:.1f} s (mean of {num_timed})")
    console.print(f"cost beside {trials} runs: {searched / (trials * alone_seconds):.3f} (target <= 0.3)")


if __name__ == "__main__":
    main()
