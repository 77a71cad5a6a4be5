"""What workers ask Ray for, on which machines, and how many of them find room."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from suptickets_ray.config import ClusterConfig

_WAIT_SECONDS = 1.0


def explorer_slots(config: ClusterConfig, chains: int) -> int:
    """Returns how many explorers can work at once: no more than asked for, than chains, or than fit.

    Machines that are about to be taken away do not count.
    """
    bundle, going = explorer_bundle(config), draining_nodes()
    places = sum(_places_on(node, bundle) for node in _nodes(config) if node["NodeID"] not in going)
    return min(config.num_explorers or chains, chains, max(places, 1))


def worker_bundle(config: ClusterConfig) -> dict[str, float]:
    """Returns what a rank of phase one asks Ray for."""
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


def places_for_workers(config: ClusterConfig, bundle: Mapping[str, float]) -> int:
    """Returns how many workers that ask for the bundle the cluster has room for, each on one machine."""
    return sum(_places_on(node, bundle) for node in _nodes(config))


def worker_labels(config: ClusterConfig) -> dict[str, str]:
    """Returns the label selector of the machines that workers may use; empty for all."""
    if not config.keep_head_free:
        return {}
    heads = [node["NodeID"] for node in ray.nodes() if _is_head(node)]
    return {"ray.io/node-id": f"!{heads[0]}"} if heads else {}


def draining_nodes() -> frozenset[str]:
    """Returns the ids of machines that are about to be taken away: spot machines with notice, or scaled down."""
    # As Ray Train 2.60 asks; Ray has no public way yet.
    return frozenset(ray._private.state.state.get_draining_nodes())


def _nodes(config: ClusterConfig) -> list[dict[str, Any]]:
    """The machines that workers may use."""
    return [node for node in ray.nodes() if node["Alive"] and not (config.keep_head_free and _is_head(node))]


def _is_head(node: Mapping[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _places_on(node: Mapping[str, Any], bundle: Mapping[str, float]) -> int:
    resources = node["Resources"]
    return min(int(resources.get(kind, 0) / amount + 1e-9) for kind, amount in bundle.items())


def wait_for_room(config: ClusterConfig, on_wait: Callable[[str], None]) -> None:
    """Returns once there is room for phase one.

    Raises:
        ValueError: If there is none, or none within `wait_minutes`; the sentence holds the numbers.
    """
    bundle, wanted = worker_bundle(config), config.min_workers
    deadline = time.monotonic() + 60 * config.wait_minutes
    asked = False
    while (places := places_for_workers(config, bundle)) < wanted:
        if time.monotonic() >= deadline:
            raise ValueError(_no_room(config, bundle, places))
        if not asked:
            request_machines([bundle] * wanted)
            on_wait(
                f"waiting up to {config.wait_minutes:g} minutes for machines: there is room for {places} of {wanted} "
                f"workers of {_in_words(bundle)}"
            )
            asked = True
        time.sleep(_WAIT_SECONDS)
    if asked:
        request_machines([])


def request_machines(bundles: Sequence[Mapping[str, float]]) -> None:
    """Tells the cluster's autoscaler, if there is one, what is needed; an empty list takes that back."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])


def _in_words(bundle: Mapping[str, float]) -> str:
    words = {"CPU": "CPU", "GPU": "GPU", "memory": "bytes of memory"}
    return " and ".join(f"{amount:g} {words.get(kind, kind)}" for kind, amount in bundle.items())


def _no_room(config: ClusterConfig, bundle: Mapping[str, float], places: int) -> str:
    nodes = _nodes(config)
    there = {kind: sum(node["Resources"].get(kind, 0) for node in nodes) for kind in bundle}
    beside = " beside its head" if config.keep_head_free else ""
    waited = f" after {config.wait_minutes:g} minutes" if config.wait_minutes else ""
    return (
        f"cluster.num_workers must be at most {places}, the workers of {_in_words(bundle)} that fit the cluster's "
        f"{_in_words(there)} on {len(nodes)} machines{beside}{waited}; got {config.num_workers}. Ask for fewer or "
        "smaller workers, or give an autoscaler time with cluster.wait_minutes."
    )
