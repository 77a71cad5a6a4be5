"""How many training examples does the recalibration of BatchNorm need?

    python experiments/benchmarks/recalibration.py [--seeds 8] [--recipe experiments/evidence/conv.yaml] [key=value ...]

Trains each seed in this process, superposes its tickets, and recalibrates the sup-ticket on samples of several sizes,
three draws of each. Prints the change of test accuracy and loss against the whole training set, with standard errors
over seeds, and how much accuracy varies between draws of one size: a size is large enough where both are below the
gate's tolerance.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace

import torch
from in_process import sup_ticket
from rich.console import Console
from rich.table import Table

from suptickets_ray import Ticket, load_config
from suptickets_ray.config import Config
from suptickets_ray.recipes.resolve import resolve
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits, load_source, make_splits
from suptickets_ray.training.evaluation import evaluate, recalibrate

SIZES = (64, 128, 256, 512, 1024)
DRAWS = 3


def main() -> None:
    """Trains, recalibrates and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--recipe", default="experiments/evidence/conv.yaml")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes: dict[int, list[tuple[float, float, float]]] = {size: [] for size in SIZES}
    for seed in range(options.seeds):
        config = resolve(replace(load_config(options.recipe, options.overrides), seed=seed))
        splits = make_splits(load_source(config.data), config.data)
        ticket = sup_ticket(config, splits)
        whole = scores(config, splits, ticket, len(splits.train), 0)
        for size in SIZES:
            if size < len(splits.train):
                drawn = [scores(config, splits, ticket, size, draw) for draw in range(DRAWS)]
                accuracies, losses = zip(*drawn, strict=True)
                change = statistics.mean(accuracies) - whole[0], statistics.mean(losses) - whole[1]
                changes[size].append((*change, statistics.stdev(accuracies)))
    table = Table("examples", "accuracy, points", "loss, nats", "deviation between draws, points")
    for size, rows in changes.items():
        if rows:
            accuracy, loss, spread = zip(*rows, strict=True)
            table.add_row(
                str(size), in_points(accuracy), f"{mean_error(loss, 1)}", f"{100 * statistics.mean(spread):.2f}"
            )
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{options.recipe}, {options.seeds} seeds, against all {len(splits.train)} training examples")
    console.print(table)


def scores(config: Config, splits: Splits, ticket: Ticket, size: int, draw: int) -> tuple[float, float]:
    """Returns test accuracy (a fraction) and loss (nats) after recalibrating on `size` training examples."""
    from suptickets_ray.training.models import build_model

    model = build_model(config.model, splits.sample_shape, splits.num_classes)
    restore(model, ticket.state_dict())
    recalibrate(model, splits, 1000 + draw, size)
    found = evaluate(model, splits.test)
    return found["accuracy"], found["loss"]


def in_points(values: tuple[float, ...]) -> str:
    """Returns mean and standard error in percentage points."""
    return mean_error(values, 100)


def mean_error(values: tuple[float, ...], factor: float) -> str:
    """Returns mean and standard error of the values times a factor."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{factor * statistics.mean(values):+.3f} +- {factor * error:.3f}"


if __name__ == "__main__":
    main()
