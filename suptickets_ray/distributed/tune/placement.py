"""Placement of a search: concurrent trials, explorers per trial, and the resources that each trial requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune as ray_tune

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.capacity import explorer_bundle, worker_labels

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Machine:
    """One machine of the cluster."""

    resources: Resources
    takes_explorers: bool = True
    """Whether explorers may run there. False for an excluded head node."""


def find_machines(config: ClusterConfig) -> list[Machine]:
    """Returns the machines of the cluster that this process is connected to."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    heads = {node["NodeID"] for node in nodes if "node:__internal_head__" in node["Resources"]}
    excluded = heads if config.exclude_head_node else set()
    return [Machine(node["Resources"], node["NodeID"] not in excluded) for node in nodes]


def head_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns the resource bundle of the trial itself, which merges and validates as a run's superposer does."""
    return {"GPU": config.superposer_gpus} if config.superposer_gpus else {}


def divide_capacity(
    config: ClusterConfig, machines: Sequence[Machine], num_trials: int, chains: int, wanted: int | None
) -> tuple[int, int]:
    """Returns the number of concurrent trials, and the number of explorers of each.

    Args:
        config: The resource requests of trials and explorers.
        machines: The machines of the cluster.
        num_trials: Number of trials of the search.
        chains: Largest number of chains of a trial.
        wanted: The value of search.max_concurrent_trials.

    Raises:
        ValueError: If they do not fit the cluster. The text holds the numbers.
    """
    concurrency = wanted or 1
    # Add trials while every trial has capacity for at least one explorer.
    while (
        not wanted and concurrency < num_trials and _explorer_capacity(config, machines, concurrency + 1) > concurrency
    ):
        concurrency += 1
    capacity = _explorer_capacity(config, machines, concurrency)
    explorers = min(chains, config.num_explorers or chains, max(capacity // concurrency, 1))
    if concurrency * explorers > capacity:
        beside = f" beside {config.superposer_gpus:g} GPU for each trial's superposer" if config.superposer_gpus else ""
        raise ValueError(
            f"search.max_concurrent_trials must leave capacity for every trial's explorers; got {concurrency} trials x "
            f"{explorers} explorers x {config.cpus_per_worker} CPU and {config.gpus_per_worker:g} GPU = "
            f"{concurrency * explorers} explorers{beside}, and the cluster fits {max(capacity, 0)}. Choose fewer "
            "concurrent trials, or smaller workers."
        )
    return concurrency, explorers


def trial_resources(config: ClusterConfig, explorers: int, labels: Mapping[str, str]) -> Any:
    """Returns the bundles of a trial: one for itself, and one for each of its explorers.

    Args:
        config: The resource requests.
        explorers: Number of explorers.
        labels: Label selector of the machines that explorers may use; empty for all.
    """
    head = head_bundle(config)
    selectors: dict[str, Any] = {}
    if labels:
        # Ray drops an empty first bundle, so then it needs no selector.
        explorer_labels = [dict(labels) for _ in range(explorers)]
        selectors["bundle_label_selector"] = [{}, *explorer_labels] if head else explorer_labels
    bundles = [explorer_bundle(config) for _ in range(explorers)]
    return ray_tune.PlacementGroupFactory([head or {"CPU": 0.0}, *bundles], **selectors)


def sized_trial(config: ClusterConfig, trial: Any, explorers: int) -> Any:
    """Returns a Tune function with its resource bundles, for the cluster that this process is connected to."""
    return ray_tune.with_resources(trial, trial_resources(config, explorers, worker_labels(config)))


def _explorer_capacity(config: ClusterConfig, machines: Sequence[Machine], trials: int) -> int:
    """Returns how many explorers fit beside `trials` trials, or -1 if the trials themselves do not fit."""
    head, explorer = head_bundle(config), explorer_bundle(config)
    left = [dict(machine.resources) for machine in machines]

    def capacity(number: int, reserved: Resources) -> int:
        """Returns how many explorers fit a machine on which `reserved` is subtracted."""
        if not machines[number].takes_explorers:
            return 0
        free = left[number]
        return min(
            int((free.get(kind, 0) - reserved.get(kind, 0)) / amount + 1e-9) for kind, amount in explorer.items()
        )

    for _ in range(trials if head else 0):
        fitting = [
            number
            for number, free in enumerate(left)
            if all(free.get(kind, 0) + 1e-9 >= amount for kind, amount in head.items())
        ]
        if not fitting:
            return -1
        # Best fit: the machine that loses the fewest explorers, among equals the one with the fewest free GPUs.
        best = min(fitting, key=lambda number: (capacity(number, {}) - capacity(number, head), left[number]["GPU"]))
        left[best] = {kind: amount - head.get(kind, 0) for kind, amount in left[best].items()}
    return sum(capacity(number, {}) for number in range(len(machines)))
