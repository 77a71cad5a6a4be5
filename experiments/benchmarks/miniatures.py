"""Runs every shipped recipe in miniature, from pretraining to the sup-ticket: made-up data, epochs of two steps.

    python experiments/benchmarks/miniatures.py [RECIPE ...]

Accuracies say nothing here; that each ends with every ticket and a sup-ticket of its density is the result.
"""

from __future__ import annotations

import sys
import tempfile
import time

import ray
from rich.console import Console

from suptickets_ray import load_config, train
from suptickets_ray.config import Config
from suptickets_ray.recipes.files import shipped_recipes

SMALL = (
    "data.name=synthetic",
    "data.options.num_train=200",
    "data.options.num_test=8",
    "data.batch_size=4",
    "train.limit_batches=2",
    "train.epochs=4",
    "train.checkpoint_every_epochs=4",
    "tickets.cycle_epochs=1",
    "tickets.cycle_rate=0.25",
    "tickets.num_chains=2",
    "superposition.recalibration_examples=8",
    "cluster.num_workers=1",
    "cluster.gpus_per_worker=0",
)


def miniature(name: str, *overrides: str) -> Config:
    """Returns the recipe with the fewest epochs, steps and examples that all of its parts take part in."""
    config, own = load_config(name), list(SMALL)
    if config.train.lr_milestone_epochs is not None:
        own.append("train.lr_milestone_epochs=null")
    if config.train.warmup_epochs:
        own.append("train.warmup_epochs=1")
    if config.method.update_interval_steps is not None:
        own.append("method.update_interval_steps=1")
    if config.method.prune_end_epoch is not None:
        own.append("method.prune_end_epoch=2")
    if config.method.prune_start_epoch:
        own.append("method.prune_start_epoch=0")
    return load_config(name, [*own, *overrides])


def main() -> None:
    """Prints a line for each recipe; a failure ends it."""
    console = Console()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    address = ray.get_runtime_context().gcs_address
    for name in sys.argv[1:] or shipped_recipes():
        with tempfile.TemporaryDirectory() as storage:
            config = miniature(name, "name=miniature", f"storage={storage}", f"cluster.address={address}")
            began = time.perf_counter()
            result = train(config).result
            found = result["superposed"]
            num_tickets, density = len(result["tickets"]), found["density"]
            spent = time.perf_counter() - began
            console.print(f"{name:32} {num_tickets} tickets, sup-ticket of density {density:.4f}, {spent:.0f} s")
    ray.shutdown()


if __name__ == "__main__":
    main()
