"""Settings that depend on the machine: chosen once, at the first start of a run, and recorded in its recipe."""

from __future__ import annotations

from dataclasses import replace

from suptickets_ray.config import Config
from suptickets_ray.training.data import load_source, make_splits
from suptickets_ray.training.precision import fastest_precision


def with_recorded(config: Config, recorded: Config) -> Config:
    """Returns the recipe with every choice that it leaves open replaced by the one that an earlier start has made.

    Args:
        config: The recipe, in which settings may be "auto".
        recorded: The recipe that the earlier start has written.
    """
    cluster, train = config.cluster, config.train
    if cluster.threads_per_worker == "auto":
        cluster = replace(cluster, threads_per_worker=recorded.cluster.threads_per_worker)
    if cluster.threads_per_explorer == "auto":
        cluster = replace(cluster, threads_per_explorer=recorded.cluster.threads_per_explorer)
    if train.precision == "auto":
        chosen = recorded.train
        train = replace(train, precision=chosen.precision, channels_last=train.channels_last or chosen.channels_last)
    return replace(config, cluster=cluster, train=train)


def with_threads(config: Config, cores: int | None, *, searches: bool = False) -> Config:
    """Returns the recipe with the threads that it leaves to "auto".

    Args:
        config: The recipe.
        cores: Cores of the machine, if it is all that Ray uses; None on a cluster, where a worker has the CPUs that it
            requests.
        searches: Whether several trials share the machine, each with explorers of its own.
    """
    cluster = config.cluster
    ranks = explorers = cluster.cpus_per_worker
    if cores is not None:
        ranks = max(cores // cluster.max_workers, ranks)
        if not searches:
            explorers = max(cores // config.tickets.num_chains, explorers)
    if cluster.threads_per_worker == "auto":
        cluster = replace(cluster, threads_per_worker=ranks)
    if cluster.threads_per_explorer == "auto":
        cluster = replace(cluster, threads_per_explorer=explorers)
    return replace(config, cluster=cluster)


def with_machine_choices(config: Config, cores: int | None, *, searches: bool = False) -> Config:
    """Returns the recipe with everything that it leaves to "auto". Measures the precision only if it is left open.

    Args:
        config: The recipe, resolved.
        cores: As for `with_threads`.
        searches: As for `with_threads`.

    Raises:
        ValueError: If the precision cannot be measured here, or the data cannot be read.
    """
    config = with_threads(config, cores, searches=searches)
    if config.train.precision != "auto":
        return config
    splits = make_splits(load_source(config.data), config.data)
    precision, channels_last = fastest_precision(config, splits)
    return replace(config, train=replace(config.train, precision=precision, channels_last=channels_last))
