"""How many trials of a search run at once, with how many explorers each, and what each asks Ray for."""

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
    """What there is on one machine of the cluster."""

    resources: Resources
    takes_explorers: bool = True
    """Not the head node, where that is kept free."""


def find_machines(config: ClusterConfig) -> list[Machine]:
    """Returns the machines of the cluster that this process is connected to."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    heads = {node["NodeID"] for node in nodes if "node:__internal_head__" in node["Resources"]}
    kept = heads if config.exclude_head_node else set()
    return [Machine(node["Resources"], node["NodeID"] not in kept) for node in nodes]


def head_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns what a trial itself asks Ray for, which merges and judges as the superposer of a run does."""
    return {"GPU": config.superposer_gpus} if config.superposer_gpus else {}


def divide_capacity(
    config: ClusterConfig, machines: Sequence[Machine], num_trials: int, chains: int, wanted: int | None
) -> tuple[int, int]:
    """Returns how many trials run at once, and with how many explorers each.

    Args:
        config: What trials and explorers ask for.
        machines: Where.
        num_trials: How many trials there are.
        chains: The most chains that a trial explores.
        wanted: search.max_concurrent_trials.

    Raises:
        ValueError: If there is no room for them; the sum stands in the sentence.
    """
    concurrency = wanted or 1
    # One after another, each with an explorer of its own, while there is room.
    while (
        not wanted and concurrency < num_trials and _explorer_capacity(config, machines, concurrency + 1) > concurrency
    ):
        concurrency += 1
    places = _explorer_capacity(config, machines, concurrency)
    explorers = min(chains, config.num_explorers or chains, max(places // concurrency, 1))
    if concurrency * explorers > places:
        heads = f" beside {config.superposer_gpus:g} GPU for each trial's superposer" if config.superposer_gpus else ""
        raise ValueError(
            f"search.max_concurrent_trials must leave room for every trial's explorers: {concurrency} trials x "
            f"{explorers} explorers x {config.cpus_per_worker} CPU and {config.gpus_per_worker:g} GPU = "
            f"{concurrency * explorers} places{heads}, and the cluster has {max(places, 0)}. Choose fewer trials at "
            "once, or smaller workers."
        )
    return concurrency, explorers


def trial_resources(config: ClusterConfig, explorers: int, labels: Mapping[str, str]) -> Any:
    """Returns the bundles of a trial: its own, and one for each of its explorers.

    Args:
        config: What they ask for.
        explorers: How many explorers.
        labels: Selector of the machines that explorers may use; empty for all.
    """
    own = head_bundle(config)
    selectors: dict[str, Any] = {}
    if labels:
        # Ray leaves out an empty first bundle, so labels are then those of the others alone.
        of_explorers = [dict(labels) for _ in range(explorers)]
        selectors["bundle_label_selector"] = [{}, *of_explorers] if own else of_explorers
    bundles = [explorer_bundle(config) for _ in range(explorers)]
    return ray_tune.PlacementGroupFactory([own or {"CPU": 0.0}, *bundles], **selectors)


def sized_trial(config: ClusterConfig, trial: Any, explorers: int) -> Any:
    """Returns a Tune function with the bundles that it runs in, on the cluster that this process is connected to."""
    return ray_tune.with_resources(trial, trial_resources(config, explorers, worker_labels(config)))


def _explorer_capacity(config: ClusterConfig, machines: Sequence[Machine], trials: int) -> int:
    """How many explorers find room beside so many trials; below 0 where the trials themselves find none."""
    own, explorer = head_bundle(config), explorer_bundle(config)
    left = [dict(machine.resources) for machine in machines]

    def places(number: int, taken: Resources) -> int:
        """Of explorers on a machine where this much is taken, too."""
        if not machines[number].takes_explorers:
            return 0
        free = left[number]
        return min(int((free.get(kind, 0) - taken.get(kind, 0)) / amount + 1e-9) for kind, amount in explorer.items())

    for _ in range(trials if own else 0):
        fitting = [
            number
            for number, free in enumerate(left)
            if all(free.get(kind, 0) + 1e-9 >= amount for kind, amount in own.items())
        ]
        if not fitting:
            return -1
        # Where the fewest explorers lose their place, and of those on the fullest machine.
        best = min(fitting, key=lambda number: (places(number, {}) - places(number, own), left[number]["GPU"]))
        left[best] = {kind: amount - own.get(kind, 0) for kind, amount in left[best].items()}
    return sum(places(number, {}) for number in range(len(machines)))
