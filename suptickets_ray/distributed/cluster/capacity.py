"""Resource requests of workers, the machines they may use, and how many of them fit the cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import ray

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.bin_packing import Machine, num_beside, num_on, num_that_fit, reserved


def num_explorers_that_fit(config: ClusterConfig, chains: int) -> int:
    """Returns the number of concurrent explorers: the least of requested, chains and capacity, but at least 1.

    Draining machines do not count. If no explorer fits, the pending explorer makes an autoscaler start a machine.
    """
    return min(config.num_explorers or chains, chains, max(explorer_capacity(config, draining_nodes()), 1))


def find_machines(config: ClusterConfig, draining: Collection[str] = ()) -> list[Machine]:
    """Returns the machines of the cluster that this process is connected to.

    Args:
        config: Sets whether workers may use the head node.
        draining: Ids of machines that do not count.
    """
    return [
        Machine(node["Resources"], not (config.exclude_head_node and _is_head(node)), node["NodeID"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def explorer_capacity(config: ClusterConfig, draining: Collection[str] = ()) -> int:
    """Returns how many explorers fit beside the superposer, or without it if it fits no machine.

    Args:
        config: The resource requests.
        draining: Ids of machines that do not count.
    """
    machines, explorer = find_machines(config, draining), explorer_bundle(config)
    capacity = num_beside(machines, explorer, superposer_bundle(config))
    return num_that_fit(machines, explorer) if capacity is None else capacity


def superposer_labels(config: ClusterConfig) -> dict[str, str]:
    """Returns the label selector of the machines that the superposer may use; empty for all.

    If other machines are available, the superposer avoids draining machines. It also avoids a machine if no explorer
    would fit the cluster with the superposer there.
    """
    superposer, explorer = superposer_bundle(config), explorer_bundle(config)
    draining = draining_nodes()
    machines = find_machines(config, draining)
    hosts = [machine for machine in machines if not superposer or num_on(machine, superposer)]
    needed = set()
    for host in hosts:
        others = [machine for machine in machines if machine != host]
        if not num_that_fit([*others, reserved(host, superposer)], explorer):
            needed.add(host.node)
    if len(needed) == len(hosts):
        needed = set()
    # An exclusion list, so that machines that join later are allowed, too.
    avoided = sorted(needed | draining) if hosts else []
    return {"ray.io/node-id": f"!in({','.join(avoided)})"} if avoided else {}


def worker_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns the resource bundle of one pretraining rank."""
    return _bundle(config, config.threads_per_worker, config.gpus_per_worker, config.worker_resources)


def explorer_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns the resource bundle of one explorer."""
    return _bundle(config, config.threads_per_explorer, config.explorer_gpus, config.explorer_resources)


def superposer_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns the resource bundle of a superposer, in a run or in a trial of a search; empty without a GPU."""
    return {"GPU": config.superposer_gpus} if config.superposer_gpus else {}


def _bundle(
    config: ClusterConfig, threads: int | Literal["auto"], gpus: float, custom_resources: Mapping[str, float] | None
) -> dict[str, float]:
    cpus = config.cpus_per_worker if threads == "auto" else max(config.cpus_per_worker, threads)
    bundle = {"CPU": float(cpus), "GPU": gpus, **(custom_resources or {})}
    bundle["memory"] = (config.memory_per_worker_gb or 0.0) * 1e9
    return {kind: amount for kind, amount in bundle.items() if amount}


def actor_options(bundle: Mapping[str, float]) -> dict[str, Any]:
    """Returns a bundle as the options of an actor."""
    custom = {kind: amount for kind, amount in bundle.items() if kind not in ("CPU", "GPU", "memory")}
    options: dict[str, Any] = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "resources": custom}
    return options | ({"memory": bundle["memory"]} if "memory" in bundle else {})


def worker_capacity(config: ClusterConfig, bundle: Mapping[str, float]) -> int:
    """Returns how many workers with this bundle fit the cluster. A worker cannot span machines."""
    return num_that_fit(find_machines(config), bundle)


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


def _is_head(node: Mapping[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


@dataclass(frozen=True)
class ResourceShortfall:
    """Resources that the cluster cannot provide."""

    summary: str
    """Completes "the cluster has capacity for ..." in the message while waiting."""
    error: str
    """Error text. `{waited}` in it is replaced by the waiting time, and the remedy is appended."""
    remedy: str
    """What the user may change, without a final stop."""

    def waiting_text(self, minutes: float) -> str:
        """Returns the message while waiting for up to `minutes`."""
        return f"waiting up to {minutes:g} minutes for machines: the cluster has capacity for {self.summary}"

    def error_text(self, minutes: float) -> str:
        """Returns the error after waiting for `minutes`."""
        waited, more = (f" after {minutes:g} minutes", "more ") if minutes else ("", "")
        return (
            f"{self.error.format(waited=waited)} {self.remedy}, or give an autoscaler {more}time with "
            "cluster.resource_timeout_minutes."
        )


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
    if not num_that_fit(find_machines(config, draining), bundle):
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
            "Leave it out to superpose on a CPU, reduce cluster.gpus_per_explorer to share a GPU",
        )
    return None


def superposer_shortfall(config: ClusterConfig, draining: Collection[str] = ()) -> ResourceShortfall | None:
    """Returns the shortfall if the superposer fits no machine, otherwise None. See `explorer_shortfall`."""
    superposer, gpus = superposer_bundle(config), config.superposer_gpus
    if not superposer or any(num_on(machine, superposer) for machine in find_machines(config, draining)):
        return None
    largest = max((machine.resources.get("GPU", 0.0) for machine in find_machines(config)), default=0.0)
    return ResourceShortfall(
        f"no superposer of {gpus:g} GPU",
        f"cluster.superposer_gpus must be at most {largest:g}, the GPUs of the largest machine{{waited}}; "
        f"got {gpus:g}.",
        "Leave it out to superpose on a CPU",
    )


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
    machines = [machine for machine in find_machines(config) if machine.takes_workers]
    total = {kind: sum(machine.resources.get(kind, 0) for machine in machines) for kind in bundle}
    beside = " beside its head" if config.exclude_head_node else ""
    return f"{_describe_bundle(total)} on {len(machines)} machines{beside}"
