"""Does bfloat16 cost accuracy?

    python experiments/benchmarks/precision.py [--seeds 8] [--recipe RECIPE] [key=value ...]

Trains every seed of a recipe in this process in float32 and in bfloat16 (channels last for images), and prints the test
accuracy of the sup-tickets, the difference with its standard error over seeds, and the ratio of the times of a step.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace

import torch
from in_process import sup_ticket
from rich.console import Console

from suptickets_ray import load_config
from suptickets_ray.recipes.resolve import resolve
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.training.data import load_source, make_splits
from suptickets_ray.training.precision import step_seconds

CPU = torch.device("cpu")


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--recipe", default="experiments/evidence/conv.yaml")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    accuracies: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    seconds: dict[str, float] = {}
    for seed in range(options.seeds):
        for precision, found in accuracies.items():
            config = resolve(replace(load_config(options.recipe, options.overrides), seed=seed))
            splits = make_splits(load_source(config.data), config.data)
            last = precision == "bfloat16" and len(splits.sample_shape) == 3 and config.model.name != "mlp"
            config = replace(config, train=replace(config.train, precision=precision, channels_last=last))
            ticket = sup_ticket(config, splits)
            found.append(Merger(config, splits, ticket, CPU).score(ticket, "test")["accuracy"])
            seconds.setdefault(precision, step_seconds(config, splits, config.train, CPU))
    differences = [100 * (fast - exact) for exact, fast in zip(*accuracies.values(), strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{options.recipe} {' '.join(options.overrides)}, {options.seeds} seeds")
    for precision, found in accuracies.items():
        spread = statistics.stdev(found) / math.sqrt(len(found))
        console.print(f"{precision}: {statistics.mean(found):.2%} +- {100 * spread:.2f} points on test")
    console.print(f"bfloat16 minus float32: {statistics.mean(differences):+.2f} +- {error:.2f} points")
    console.print(f"a step in bfloat16 takes {seconds['bfloat16'] / seconds['float32']:.2f} of float32's time")


if __name__ == "__main__":
    main()
