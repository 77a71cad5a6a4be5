"""Describes a run or search without starting it: its data, network, budget and requested resources."""

from __future__ import annotations

import math

from torch.nn import Module

from suptickets_ray.config import Config
from suptickets_ray.progress.words import size_text
from suptickets_ray.search.plan import SearchPlan
from suptickets_ray.tickets.store import child
from suptickets_ray.training.data import Splits
from suptickets_ray.training.loop import budget_of, masked_parameters, steps_per_epoch
from suptickets_ray.training.models import build_model
from suptickets_ray.training.nested import describe_shape
from suptickets_ray.training.optim import count_state

_FLOAT_BYTES = 4
Row = tuple[str, str]


def describe_run(config: Config, splits: Splits) -> list[Row]:
    """Returns titles and sentences about one run. Builds the network; needs no Ray.

    Args:
        config: The resolved recipe.
        splits: Its data.

    Raises:
        ValueError: If the network cannot be built.
    """
    model = build_model(config.model, splits.sample_shape, splits.num_classes)
    return [
        ("data", _data(config, splits)),
        ("network", _network(config, model)),
        ("pretraining", _pretraining(config, splits)),
        ("exploration", _exploration(config, splits)),
        ("Ray", _resources(config)),
        ("memory", _memory(config, model)),
        ("disk", _disk(config, model)),
        ("files", child(config.storage, config.name)),
    ]


def describe_search(config: Config) -> list[Row]:
    """Returns titles and sentences about a search. Its trials are as in `describe_run`, except for the searched keys.

    Raises:
        ValueError: If the search section is invalid.
    """
    plan = SearchPlan(config)
    trials = f"{plan.num_trials:,} trials, {config.search.num_seeds:,} seeds each"
    return [("search", f"{trials}; {len(plan.pretrainings()):,} pretrainings, shared by the trials")]


def _data(config: Config, splits: Splits) -> str:
    counts = ", ".join(f"{len(getattr(splits, name)):,} {name}" for name in ("train", "validation", "test"))
    outputs = "classes" if config.task.name == "classification" else f"outputs of task {config.task.name}"
    shape = describe_shape(splits.sample_shape)
    return f"{config.data.name}: {counts} examples of shape {shape}, {splits.num_classes} {outputs}"


def _network(config: Config, model: Module) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    maskable = _num_maskable(config, model)
    active = math.floor(maskable * config.method.density)
    return (
        f"{config.model.name}: {total:,} parameters, {maskable:,} of them maskable; {active:,} active at density "
        f"{config.method.density:g}"
    )


def _pretraining(config: Config, splits: Splits) -> str:
    epochs, steps = budget_of(config).pretrain_epochs, steps_per_epoch(config, splits)
    return (
        f"{config.method.name}, {epochs:,} epochs of {steps:,} steps = {epochs * steps:,} steps of "
        f"{config.data.batch_size} examples"
    )


def _exploration(config: Config, splits: Splits) -> str:
    budget, chains = budget_of(config), config.tickets.num_chains
    steps = budget.cycle_epochs * steps_per_epoch(config, splits)
    return (
        f"{chains:,} chains x {budget.cycles:,} cycles = {chains * budget.cycles:,} tickets, each of "
        f"{budget.cycle_epochs:,} epochs = {steps:,} steps"
    )


def _resources(config: Config) -> str:
    cluster = config.cluster
    gpus = f" and {cluster.gpus_per_worker:g} GPU" if cluster.gpus_per_worker else ""
    each = f"{cluster.cpus_per_worker} CPU{gpus}"
    ranks = cluster.num_workers if isinstance(cluster.num_workers, int) else "{} to {}".format(*cluster.num_workers)
    explorers = min(cluster.num_explorers or config.tickets.num_chains, config.tickets.num_chains)
    where = f"the cluster at {cluster.address}" if cluster.address else "a local Ray, or the one that RAY_ADDRESS names"
    superposer = f"{cluster.superposer_gpus:g} GPU" if cluster.superposer_gpus else "no GPU"
    return f"{where}: {ranks} ranks, then up to {explorers} explorers, of {each} each; a superposer with {superposer}"


def _memory(config: Config, model: Module) -> str:
    """Returns the memory per process. Weights, gradients and optimizer state are dense in every training process."""
    copies = 2 + count_state(config.train)
    size = _FLOAT_BYTES * copies * sum(parameter.numel() for parameter in model.parameters())
    return f"about {size_text(size)} for weights, gradients and optimizer state per rank and explorer, plus activations"


def _disk(config: Config, model: Module) -> str:
    """Returns the disk space. A ticket has active values and one bit per maskable weight; a state more values."""
    total, maskable = sum(parameter.numel() for parameter in model.parameters()), _num_maskable(config, model)
    active = math.floor(maskable * config.method.density)
    ticket = _FLOAT_BYTES * (total - maskable + active) + maskable // 8
    tickets = config.tickets.num_chains * budget_of(config).cycles
    states = (1 + count_state(config.train)) * ticket * (config.tickets.num_chains + 1)
    return (
        f"about {size_text(ticket)} for each of {tickets:,} tickets and {size_text(states)} for states: "
        f"{size_text(ticket * (tickets + 1) + states)}"
    )


def _num_maskable(config: Config, model: Module) -> int:
    maskable = masked_parameters(model, config.method)
    return sum(parameter.numel() for parameter in maskable.values())
