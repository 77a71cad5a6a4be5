"""Placement of a search: concurrent trials, explorers per trial, and the resources that each trial requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune as ray_tune

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.bin_packing import Machine, num_beside
from suptickets_ray.distributed.cluster.capacity import (
    ResourceShortfall,
    explorer_bundle,
    find_machines,
    superposer_bundle,
    worker_labels,
)
from suptickets_ray.distributed.cluster.watchdog import OnWait, wait_for_machines
from suptickets_ray.search.plan import SearchPlan


def wait_for_placement(plan: SearchPlan, on_wait: OnWait) -> tuple[int, int]:
    """Returns the number of concurrent trials, and the number of explorers of each.

    Waits for machines for up to `cluster.resource_timeout_minutes`.

    Args:
        plan: The plan of the search.
        on_wait: Called with the reason for waiting.

    Raises:
        ValueError: If the trials do not fit the cluster. The text holds the numbers.
    """
    cluster, wanted = plan.config.cluster, plan.config.search.max_concurrent_trials
    chains = max(plan.config_of(point).tickets.num_chains for point in plan.known)
    placement = (0, 0)

    def find_shortfall() -> ResourceShortfall | None:
        nonlocal placement
        machines = find_machines(cluster)
        placement = divide_capacity(cluster, machines, plan.num_trials, chains, wanted)
        return placement_shortfall(cluster, machines, *placement)

    bundles = [bundle for bundle in (superposer_bundle(cluster), explorer_bundle(cluster)) if bundle] * (wanted or 1)
    wait_for_machines(cluster, bundles, find_shortfall, on_wait)
    return placement


def divide_capacity(
    config: ClusterConfig, machines: Sequence[Machine], num_trials: int, chains: int, wanted: int | None
) -> tuple[int, int]:
    """Returns the number of concurrent trials, and the number of explorers of each. They need not fit.

    Args:
        config: The resource requests of trials and explorers.
        machines: The machines of the cluster.
        num_trials: Number of trials of the search.
        chains: Largest number of chains of a trial.
        wanted: The value of search.max_concurrent_trials.
    """
    concurrency = wanted or 1
    # Add trials while every trial has capacity for at least one explorer.
    while not wanted and concurrency < num_trials and _capacity(config, machines, concurrency + 1) > concurrency:
        concurrency += 1
    share = _capacity(config, machines, concurrency) // concurrency
    return concurrency, min(chains, config.num_explorers or chains, max(share, 1))


def placement_shortfall(
    config: ClusterConfig, machines: Sequence[Machine], concurrency: int, explorers: int
) -> ResourceShortfall | None:
    """Returns the shortfall if a division of the cluster does not fit it, otherwise None.

    Args:
        config: The resource requests of trials and explorers.
        machines: The machines of the cluster.
        concurrency: Number of concurrent trials.
        explorers: Number of explorers of each trial.
    """
    needed, capacity = concurrency * explorers, _capacity(config, machines, concurrency)
    if needed <= capacity:
        return None
    beside = f" beside {config.superposer_gpus:g} GPU for each trial's superposer" if config.superposer_gpus else ""
    return ResourceShortfall(
        f"fewer than {concurrency} trials at once",
        f"search.max_concurrent_trials must leave capacity for every trial's explorers; got {concurrency} trials x "
        f"{explorers} explorers x {explorer_bundle(config)['CPU']:g} CPU and {config.explorer_gpus:g} GPU = "
        f"{needed} explorers{beside}, and the cluster fits {capacity}{{waited}}.",
        "Choose fewer concurrent trials, or smaller workers",
    )


def _capacity(config: ClusterConfig, machines: Sequence[Machine], num_trials: int) -> int:
    """Returns how many explorers fit beside the superposers of `num_trials` trials; 0 if the superposers do not fit."""
    return num_beside(machines, explorer_bundle(config), superposer_bundle(config), num_trials) or 0


def trial_resources(config: ClusterConfig, explorers: int, labels: Mapping[str, str]) -> Any:
    """Returns the bundles of a trial: one for itself, and one for each of its explorers.

    Args:
        config: The resource requests.
        explorers: Number of explorers.
        labels: Label selector of the machines that explorers may use; empty for all.
    """
    head = superposer_bundle(config)
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
