"""Resource requests of workers, the machines they may use, and how many of them fit the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from suptickets_ray.config import ClusterConfig

_POLL_SECONDS = 1.0
OnWait = Callable[[str], None]
"""Called once, with the reason for waiting."""


def num_explorers_that_fit(config: ClusterConfig, chains: int) -> int:
    """Returns the number of concurrent explorers: the least of requested, chains and capacity, but at least 1.

    Draining machines do not count. If no explorer fits, the pending explorer makes an autoscaler start a machine.
    """
    return min(config.num_explorers or chains, chains, max(explorer_capacity(config, draining_nodes()), 1))


def explorer_capacity(config: ClusterConfig, draining: Collection[str] = ()) -> int:
    """Returns how many explorers fit beside the superposer, whose GPUs are placed where they displace the fewest.

    Args:
        config: The resource requests.
        draining: Ids of machines that do not count.
    """
    hosts: list[Any] = [node for node in superposer_nodes(config) if node["NodeID"] not in draining]
    return max(_capacity_beside(config, host, draining) for host in hosts or [None])


def _capacity_beside(config: ClusterConfig, host: Mapping[str, Any] | None, draining: Collection[str]) -> int:
    """Returns how many explorers fit when the superposer is on `host`, or on no machine."""
    bundle, capacity = explorer_bundle(config), 0
    for node in _nodes(config):
        if node["NodeID"] not in draining:
            is_host = host is not None and host["NodeID"] == node["NodeID"]
            capacity += _capacity_on(node["Resources"], bundle, config.superposer_gpus if is_host else 0.0)
    return capacity


def superposer_nodes(config: ClusterConfig) -> list[dict[str, Any]]:
    """Returns the machines with enough GPUs for the superposer, including the head."""
    return [
        node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0.0) >= config.superposer_gpus
    ]


def superposer_labels(config: ClusterConfig) -> dict[str, str]:
    """Returns the label selector of the machines that the superposer may use; empty for all.

    If other machines are available, the superposer avoids draining machines. It also avoids a machine if no explorer
    would fit the cluster with the superposer there.
    """
    draining = draining_nodes()
    hosts = [node for node in superposer_nodes(config) if node["NodeID"] not in draining]
    needed = {node["NodeID"] for node in hosts if not _capacity_beside(config, node, draining)}
    if len(needed) == len(hosts):
        needed = set()
    # An exclusion list, so that machines that join later are allowed, too.
    avoided = sorted(needed | draining) if hosts else []
    return {"ray.io/node-id": f"!in({','.join(avoided)})"} if avoided else {}


def worker_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns the resource bundle of one pretraining rank."""
    return _bundle(config, config.worker_resources)


def explorer_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns the resource bundle of one explorer."""
    return _bundle(config, config.explorer_resources)


def _bundle(config: ClusterConfig, custom_resources: Mapping[str, float] | None) -> dict[str, float]:
    bundle = {"CPU": float(config.cpus_per_worker), "GPU": config.gpus_per_worker, **(custom_resources or {})}
    bundle["memory"] = (config.memory_per_worker_gb or 0.0) * 1e9
    return {kind: amount for kind, amount in bundle.items() if amount}


def actor_options(bundle: Mapping[str, float]) -> dict[str, Any]:
    """Returns a bundle as the options of an actor."""
    custom = {kind: amount for kind, amount in bundle.items() if kind not in ("CPU", "GPU", "memory")}
    options: dict[str, Any] = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "resources": custom}
    return options | ({"memory": bundle["memory"]} if "memory" in bundle else {})


def worker_capacity(config: ClusterConfig, bundle: Mapping[str, float]) -> int:
    """Returns how many workers with this bundle fit the cluster. A worker cannot span machines."""
    return sum(_capacity_on(node["Resources"], bundle) for node in _nodes(config))


def worker_labels(config: ClusterConfig) -> dict[str, str]:
    """Returns the label selector of the machines that workers may use; empty for all."""
    if not config.exclude_head_node:
        return {}
    heads = [node["NodeID"] for node in ray.nodes() if _is_head(node)]
    return {"ray.io/node-id": f"!{heads[0]}"} if heads else {}


def draining_nodes() -> frozenset[str]:
    """Returns the ids of draining machines: spot machines with a preemption notice, or machines being scaled down."""
    # Ray Train 2.60 makes the same call; Ray has no public API for it yet.
    return frozenset(ray._private.state.state.get_draining_nodes())


def _nodes(config: ClusterConfig) -> list[dict[str, Any]]:
    """Returns the machines that workers may use."""
    return [node for node in ray.nodes() if node["Alive"] and not (config.exclude_head_node and _is_head(node))]


def _is_head(node: Mapping[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _capacity_on(resources: Mapping[str, float], bundle: Mapping[str, float], reserved_gpus: float = 0.0) -> int:
    free = {**resources, "GPU": resources.get("GPU", 0.0) - reserved_gpus}
    return min(int(max(free.get(kind, 0.0), 0.0) / amount + 1e-9) for kind, amount in bundle.items())


@dataclass(frozen=True)
class ResourceShortfall:
    """Resources that the cluster cannot provide."""

    summary: str
    """Completes "the cluster has capacity for ..." in the message while waiting."""
    error: str
    """Error text. `{waited}` in it is replaced by the waiting time, and the remedy is appended."""
    remedy: str


def resource_shortfall(config: ClusterConfig) -> ResourceShortfall | None:
    """Returns what does not fit the cluster, by the sizes of its machines; None if everything fits.

    Pretraining must fit, and after it an explorer beside the superposer. Resources in use by other jobs count as free.
    """
    bundle, wanted = worker_bundle(config), config.min_workers
    capacity = worker_capacity(config, bundle)
    if capacity < wanted:
        return ResourceShortfall(
            f"{capacity} of {wanted} workers of {_describe_bundle(bundle)}",
            f"cluster.num_workers must be at most {capacity}, the workers of {_describe_bundle(bundle)} that fit the "
            f"cluster's {_describe_cluster(config, bundle)}{{waited}}; got {config.num_workers}.",
            "Ask for fewer or smaller workers",
        )
    return explorer_shortfall(config)


def explorer_shortfall(config: ClusterConfig, draining: Collection[str] = ()) -> ResourceShortfall | None:
    """Returns what exploration lacks: capacity for an explorer, the superposer, or both at once; None if all fit.

    Args:
        config: The resource requests.
        draining: Ids of machines that do not count, because they are draining.
    """
    bundle, gpus = explorer_bundle(config), config.superposer_gpus
    if not _capacity_beside(config, None, draining):
        return ResourceShortfall(
            f"no explorer of {_describe_bundle(bundle)}",
            f"cluster.explorer_resources and the other resources of an explorer must fit one machine; got "
            f"{_describe_bundle(bundle)}, and the cluster has {_describe_cluster(config, bundle)}{{waited}}.",
            "Correct the names, or ask for less",
        )
    if (shortfall := superposer_shortfall(config, draining)) is not None:
        return shortfall
    if not explorer_capacity(config, draining):
        return ResourceShortfall(
            f"no explorer of {_describe_bundle(bundle)} beside the superposer of {gpus:g} GPU",
            f"cluster.superposer_gpus must leave capacity for an explorer of {_describe_bundle(bundle)} in the "
            f"cluster's {_describe_cluster(config, bundle)}{{waited}}; got {gpus:g}.",
            "Leave it out to superpose on a CPU, reduce cluster.gpus_per_worker to share a GPU",
        )
    return None


def superposer_shortfall(config: ClusterConfig, draining: Collection[str] = ()) -> ResourceShortfall | None:
    """Returns the shortfall if the superposer fits no machine, otherwise None. See `explorer_shortfall`."""
    gpus = config.superposer_gpus
    if any(node["NodeID"] not in draining for node in superposer_nodes(config)):
        return None
    largest = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    return ResourceShortfall(
        f"no superposer of {gpus:g} GPU",
        f"cluster.superposer_gpus must be at most {largest:g}, the GPUs of the largest machine{{waited}}; "
        f"got {gpus:g}.",
        "Leave it out to superpose on a CPU",
    )


def wait_for_capacity(config: ClusterConfig, on_wait: OnWait) -> None:
    """Waits until pretraining fits, and after it an explorer beside the superposer.

    The request to the autoscaler is cancelled on every exit. A killed start of the run may have left a request, which
    would keep billed machines running. It is cancelled first.

    Args:
        config: The resource requests.
        on_wait: Called with the reason for waiting.

    Raises:
        ValueError: If the cluster lacks capacity, also after `resource_timeout_minutes`. The text holds the numbers.
    """
    needed = [worker_bundle(config)] * config.min_workers
    if explorer_bundle(config) != worker_bundle(config):  # otherwise explorers reuse pretraining's machines
        needed.append(explorer_bundle(config))
    if config.superposer_gpus:
        needed.append({"GPU": config.superposer_gpus})
    if config.resource_timeout_minutes:
        request_machines([])
    _wait(config, needed, lambda: resource_shortfall(config), on_wait)


def wait_for_machines(
    config: ClusterConfig,
    needed: Sequence[Mapping[str, float]],
    fits: Callable[[], bool],
    what: str,
    on_wait: OnWait,
) -> None:
    """Waits until `fits` returns True, at most `resource_timeout_minutes`. The caller raises the error after a timeout.

    Args:
        config: Sets how long to wait.
        needed: Bundles to request from the autoscaler.
        fits: Whether the bundles fit the cluster.
        what: Description of the bundles, for the message.
        on_wait: Called with the reason for waiting.
    """
    _wait(config, needed, lambda: None if fits() else ResourceShortfall(f"fewer than {what}", "", ""), on_wait)


def _wait(
    config: ClusterConfig,
    needed: Sequence[Mapping[str, float]],
    find_shortfall: Callable[[], ResourceShortfall | None],
    on_wait: OnWait,
) -> None:
    """Waits until there is no shortfall. After a timeout it raises the shortfall's error, if it has one."""
    deadline, has_requested = time.monotonic() + 60 * config.resource_timeout_minutes, False
    try:
        while (shortfall := find_shortfall()) is not None:
            if time.monotonic() >= deadline:
                if not shortfall.error:
                    return
                waited = (
                    f" after {config.resource_timeout_minutes:g} minutes" if config.resource_timeout_minutes else ""
                )
                raise ValueError(
                    f"{shortfall.error.format(waited=waited)} {shortfall.remedy}, or give an autoscaler time with "
                    "cluster.resource_timeout_minutes."
                )
            if not has_requested:
                has_requested = True
                request_machines(needed)
                on_wait(
                    f"waiting up to {config.resource_timeout_minutes:g} minutes for machines: the cluster has capacity "
                    f"for {shortfall.summary}"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        if has_requested:
            cancel_machine_request()


def request_machines(bundles: Sequence[Mapping[str, float]]) -> None:
    """Requests bundles from the cluster's autoscaler, if it has one. An empty list cancels the request."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])


def cancel_machine_request() -> None:
    """Cancels the request to the autoscaler during cleanup. Suppresses errors, so that an earlier one is reported."""
    with suppress(Exception):  # Ray may have ended first
        request_machines([])


def _describe_bundle(bundle: Mapping[str, float]) -> str:
    units = {"CPU": "CPU", "GPU": "GPU", "memory": "bytes of memory"}
    return " and ".join(f"{amount:g} {units.get(kind, kind)}" for kind, amount in bundle.items())


def _describe_cluster(config: ClusterConfig, bundle: Mapping[str, float]) -> str:
    nodes = _nodes(config)
    total = {kind: sum(node["Resources"].get(kind, 0) for node in nodes) for kind in bundle}
    beside = " beside its head" if config.exclude_head_node else ""
    return f"{_describe_bundle(total)} on {len(nodes)} machines{beside}"
