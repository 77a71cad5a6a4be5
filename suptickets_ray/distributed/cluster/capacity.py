"""What workers ask Ray for, on which machines, and how many of them find room."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from suptickets_ray.config import ClusterConfig

_WAIT_SECONDS = 1.0
OnWait = Callable[[str], None]
"""Is told, once, what is waited for."""


def num_explorers_that_fit(config: ClusterConfig, chains: int) -> int:
    """Returns how many explorers can work at once: no more than asked for, than chains, or than fit; at least 1.

    Machines that are about to be taken away do not count. The one explorer for which there is no room is what makes an
    autoscaler start a machine.
    """
    return min(config.num_explorers or chains, chains, max(explorer_capacity(config, draining_nodes()), 1))


def explorer_capacity(config: ClusterConfig, draining: Collection[str] = ()) -> int:
    """Returns how many explorers have room beside the superposer, which takes its GPUs where that costs the fewest.

    Args:
        config: What they ask for.
        draining: Ids of machines that do not count.
    """
    hosts: list[Any] = [node for node in superposer_nodes(config) if node["NodeID"] not in draining]
    return max(_capacity_beside(config, host, draining) for host in hosts or [None])


def _capacity_beside(config: ClusterConfig, host: Mapping[str, Any] | None, draining: Collection[str]) -> int:
    """How many explorers have room when the superposer is on one machine, or nowhere."""
    bundle, places = explorer_bundle(config), 0
    for node in _nodes(config):
        if node["NodeID"] not in draining:
            is_host = host is not None and host["NodeID"] == node["NodeID"]
            places += _capacity_on(node["Resources"], bundle, config.superposer_gpus if is_host else 0.0)
    return places


def superposer_nodes(config: ClusterConfig) -> list[dict[str, Any]]:
    """Returns the machines that have the GPUs which the superposer asks for; the head is one like the others."""
    return [
        node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0.0) >= config.superposer_gpus
    ]


def superposer_labels(config: ClusterConfig) -> dict[str, str]:
    """Returns the label selector of the machines that the superposer may use; empty for all.

    Where there is another, it keeps off machines that are about to be taken away, and off one that all explorers need.
    """
    draining = draining_nodes()
    hosts = [node for node in superposer_nodes(config) if node["NodeID"] not in draining]
    needed = {node["NodeID"] for node in hosts if not _capacity_beside(config, node, draining)}
    if len(needed) == len(hosts):
        needed = set()
    # Those to avoid are named, not those to use: a machine that comes later may be used, too.
    avoided = sorted(needed | draining) if hosts else []
    return {"ray.io/node-id": f"!in({','.join(avoided)})"} if avoided else {}


def worker_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns what a rank of pretraining asks Ray for."""
    return _bundle(config, config.worker_resources)


def explorer_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns what an explorer asks Ray for."""
    return _bundle(config, config.explorer_resources)


def _bundle(config: ClusterConfig, own: Mapping[str, float] | None) -> dict[str, float]:
    bundle = {"CPU": float(config.cpus_per_worker), "GPU": config.gpus_per_worker, **(own or {})}
    bundle["memory"] = (config.memory_per_worker_gb or 0.0) * 1e9
    return {kind: amount for kind, amount in bundle.items() if amount}


def actor_options(bundle: Mapping[str, float]) -> dict[str, Any]:
    """Returns a bundle as the options of an actor."""
    own = {kind: amount for kind, amount in bundle.items() if kind not in ("CPU", "GPU", "memory")}
    options: dict[str, Any] = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "resources": own}
    return options | ({"memory": bundle["memory"]} if "memory" in bundle else {})


def worker_capacity(config: ClusterConfig, bundle: Mapping[str, float]) -> int:
    """Returns how many workers that ask for the bundle the cluster has room for, each on one machine."""
    return sum(_capacity_on(node["Resources"], bundle) for node in _nodes(config))


def worker_labels(config: ClusterConfig) -> dict[str, str]:
    """Returns the label selector of the machines that workers may use; empty for all."""
    if not config.exclude_head_node:
        return {}
    heads = [node["NodeID"] for node in ray.nodes() if _is_head(node)]
    return {"ray.io/node-id": f"!{heads[0]}"} if heads else {}


def draining_nodes() -> frozenset[str]:
    """Returns the ids of machines that are about to be taken away: spot machines with notice, or scaled down."""
    # As Ray Train 2.60 asks; Ray has no public way yet.
    return frozenset(ray._private.state.state.get_draining_nodes())


def _nodes(config: ClusterConfig) -> list[dict[str, Any]]:
    """The machines that workers may use."""
    return [node for node in ray.nodes() if node["Alive"] and not (config.exclude_head_node and _is_head(node))]


def _is_head(node: Mapping[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _capacity_on(resources: Mapping[str, float], bundle: Mapping[str, float], taken_gpus: float = 0.0) -> int:
    free = {**resources, "GPU": resources.get("GPU", 0.0) - taken_gpus}
    return min(int(max(free.get(kind, 0.0), 0.0) / amount + 1e-9) for kind, amount in bundle.items())


@dataclass(frozen=True)
class ResourceShortfall:
    """What the cluster has no room for."""

    short: str
    """For a person who waits."""
    refusal: str
    """What must be how; how long was waited, and a remedy, come after it."""
    remedy: str


def resource_shortfall(config: ClusterConfig) -> ResourceShortfall | None:
    """Returns what the cluster has no room for, by the sizes of its machines; None where all fits.

    Pretraining, and after it an explorer beside the superposer, must fit. What else runs there now does not count.
    """
    bundle, wanted = worker_bundle(config), config.min_workers
    places = worker_capacity(config, bundle)
    if places < wanted:
        return ResourceShortfall(
            f"{places} of {wanted} workers of {_in_words(bundle)}",
            f"cluster.num_workers must be at most {places}, the workers of {_in_words(bundle)} that fit the cluster's "
            f"{_there(config, bundle)}{{waited}}; got {config.num_workers}.",
            "Ask for fewer or smaller workers",
        )
    return explorer_shortfall(config)


def explorer_shortfall(config: ClusterConfig, draining: Collection[str] = ()) -> ResourceShortfall | None:
    """Returns what exploration has no room for: an explorer, the superposer, or both at once.

    Args:
        config: What is asked for.
        draining: Ids of machines that do not count, because they are about to be taken away.
    """
    bundle, gpus = explorer_bundle(config), config.superposer_gpus
    if not _capacity_beside(config, None, draining):
        return ResourceShortfall(
            f"no explorer of {_in_words(bundle)}",
            f"cluster.explorer_resources and what workers are given must fit a machine; an explorer's "
            f"{_in_words(bundle)} fits none of the cluster's, with {_there(config, bundle)}{{waited}}.",
            "Correct the names, or ask for less",
        )
    if (lack := superposer_shortfall(config, draining)) is not None:
        return lack
    if not explorer_capacity(config, draining):
        return ResourceShortfall(
            f"no explorer of {_in_words(bundle)} beside the superposer of {gpus:g} GPU",
            f"cluster.superposer_gpus must leave room for an explorer of {_in_words(bundle)} in the cluster's "
            f"{_there(config, bundle)}{{waited}}; got {gpus:g}.",
            "Leave it out to superpose on a CPU, or let them share with cluster.gpus_per_worker",
        )
    return None


def superposer_shortfall(config: ClusterConfig, draining: Collection[str] = ()) -> ResourceShortfall | None:
    """Returns that there is no room for the superposer; None if there is. See `explorer_shortfall`."""
    gpus = config.superposer_gpus
    if any(node["NodeID"] not in draining for node in superposer_nodes(config)):
        return None
    most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    return ResourceShortfall(
        f"no superposer of {gpus:g} GPU",
        f"cluster.superposer_gpus must be at most {most:g}, the GPUs of the largest machine{{waited}}; got {gpus:g}.",
        "Leave it out to superpose on a CPU",
    )


def wait_for_capacity(config: ClusterConfig, on_wait: OnWait) -> None:
    """Returns once there is room for pretraining, and for an explorer beside the superposer after it.

    What the autoscaler was asked for is taken back, however this ends, and also what an earlier start of the run that
    was killed has asked for: it would keep machines, and be paid for, until somebody asks for something else.

    Args:
        config: What is asked for.
        on_wait: Is told what is waited for.

    Raises:
        ValueError: If there is none, or none within `resource_timeout_minutes`; the sentence holds the numbers.
    """
    needed = [worker_bundle(config)] * config.min_workers
    if explorer_bundle(config) != worker_bundle(config):  # otherwise they go where pretraining was
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
    """Returns once it fits, or after `resource_timeout_minutes`; the caller then refuses with its own numbers.

    Args:
        config: Says how long.
        needed: Bundles that the autoscaler is asked for.
        fits: Says whether they have room.
        what: They in words.
        on_wait: Is told what is waited for.
    """
    _wait(config, needed, lambda: None if fits() else ResourceShortfall(f"fewer than {what}", "", ""), on_wait)


def _wait(
    config: ClusterConfig,
    needed: Sequence[Mapping[str, float]],
    lacking: Callable[[], ResourceShortfall | None],
    on_wait: OnWait,
) -> None:
    """Returns once nothing is lacking; when the time is over, a lack with a refusal is raised as ValueError."""
    deadline, asked = time.monotonic() + 60 * config.resource_timeout_minutes, False
    try:
        while (lack := lacking()) is not None:
            if time.monotonic() >= deadline:
                if not lack.refusal:
                    return
                waited = (
                    f" after {config.resource_timeout_minutes:g} minutes" if config.resource_timeout_minutes else ""
                )
                raise ValueError(
                    f"{lack.refusal.format(waited=waited)} {lack.remedy}, or give an autoscaler time with "
                    "cluster.resource_timeout_minutes."
                )
            if not asked:
                asked = True
                request_machines(needed)
                on_wait(
                    f"waiting up to {config.resource_timeout_minutes:g} minutes for machines: there is room for "
                    f"{lack.short}"
                )
            time.sleep(_WAIT_SECONDS)
    finally:
        if asked:
            withdraw_request()


def request_machines(bundles: Sequence[Mapping[str, float]]) -> None:
    """Tells the cluster's autoscaler, if there is one, what is needed; an empty list takes that back."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])


def withdraw_request() -> None:
    """Takes back what was asked of the autoscaler, on the way out: an error that is under way stays the one raised."""
    with suppress(Exception):  # its Ray may have ended before it
        request_machines([])


def _in_words(bundle: Mapping[str, float]) -> str:
    words = {"CPU": "CPU", "GPU": "GPU", "memory": "bytes of memory"}
    return " and ".join(f"{amount:g} {words.get(kind, kind)}" for kind, amount in bundle.items())


def _there(config: ClusterConfig, bundle: Mapping[str, float]) -> str:
    nodes = _nodes(config)
    there = {kind: sum(node["Resources"].get(kind, 0) for node in nodes) for kind in bundle}
    beside = " beside its head" if config.exclude_head_node else ""
    return f"{_in_words(there)} on {len(nodes)} machines{beside}"
