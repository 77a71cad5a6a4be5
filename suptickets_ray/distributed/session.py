"""Joining a running Ray, or starting a local one and ending just that one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.monitor import OnEvent
from suptickets_ray.distributed.room import wait_for_room

TOKEN_PATH = "~/.ray/auth_token"  # noqa: S105 - where Ray keeps it, not the token
_OPEN = (
    "this Ray asks for no token: whoever reaches its ports can run code on its machines. Start every part of it with "
    "RAY_AUTH_MODE=token, and make a token with ray get-auth-token --generate."
)
_CONNECT_SECONDS = 10
_JOIN_SECONDS = 60


@contextmanager
def ray_session(
    config: ClusterConfig, on_event: OnEvent = lambda event: None, *, verbose: bool = False
) -> Iterator[None]:
    """Keeps this process connected to Ray.

    A Ray that this process has already initialised is used, and left as it is. Otherwise `cluster.address` or
    RAY_ADDRESS is joined and left again; without either a local Ray is started and ended.

    Args:
        config: Address, and what the run will ask for.
        on_event: Is told when it waits for machines, and when anybody can get into the cluster.
        verbose: Whether Ray's own messages and the workers' output are shown.

    Raises:
        ValueError: If the cluster cannot be reached, is not the one this process is connected to, or has no room for
            phase one, within the time that the recipe gives.
    """
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if config.address not in (None, "auto", connected):
            raise ValueError(
                f"cluster.address must be {connected}, which this process is connected to; got {config.address!r}. "
                "Leave it out, or call ray.shutdown() first."
            )
        wait_for_room(config, lambda text: on_event({"kind": "waiting", "text": text}))
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(config)
    try:
        if address:
            _join(address, verbose)
        else:
            _start_local(config, verbose)
        if not asks_for_token():
            on_event({"kind": "warning", "text": _OPEN})
        wait_for_room(config, lambda text: on_event({"kind": "waiting", "text": text}))
        yield
    finally:
        ray.shutdown()


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Lets Ray start to the end before an interrupt counts: broken off half-way, it leaves processes behind.

    Ray also puts a handler of its own on SIGTERM, so those that stood before are set again afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _logging_level(verbose: bool) -> int:
    return logging.INFO if verbose else logging.CRITICAL


def _start_local(config: ClusterConfig, verbose: bool) -> None:
    # A controller on this machine alone may poll often: phase one then ends seconds earlier.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    with _interrupts_deferred():
        ray.init(
            address="local",
            num_cpus=_local_cpus(config),
            include_dashboard=False,
            log_to_driver=verbose,
            logging_level=_logging_level(verbose),
        )


def _join(address: str, verbose: bool) -> None:
    """Joins in a thread: where something other than Ray listens, Ray tries for minutes and hears no Ctrl-C."""
    errors: list[Exception] = []

    def join() -> None:
        try:
            ray.init(address=address, log_to_driver=verbose, logging_level=_logging_level(verbose))
        except Exception as error:  # noqa: BLE001 - said in the main thread, in our words
            errors.append(error)

    thread = threading.Thread(target=join, name="join-ray", daemon=True)
    thread.start()
    deadline = time.monotonic() + _JOIN_SECONDS
    while thread.is_alive():
        thread.join(0.1)
        if time.monotonic() > deadline:
            raise ValueError(_no_cluster(address, f"no answer within {_JOIN_SECONDS} s"))
    if errors:
        raise ValueError(_no_cluster(address, errors[0])) from errors[0]


def asks_for_token() -> bool:
    """Returns whether this process shows a token to its Ray, which then asks everybody for it."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return False
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or Path(TOKEN_PATH).expanduser().is_file()


def cluster_address(config: ClusterConfig) -> str | None:
    """Returns the address of the Ray cluster to join, or None to start a local Ray."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


def check_address(config: ClusterConfig) -> None:
    """Finds out whether anybody listens where the cluster should be, or whether this machine can be one.

    Raises:
        ValueError: If nobody listens, or no cluster is named and this machine has too few GPUs.
    """
    address = cluster_address(config)
    if address is None and not ray.is_initialized():
        wanted, found = config.min_workers * config.gpus_per_worker, torch.cuda.device_count()
        if wanted > found:
            raise ValueError(
                f"cluster.gpus_per_worker must fit this machine's {found} GPUs, {config.min_workers} workers at once; "
                f"got {config.gpus_per_worker:g}. Leave it out, or name a cluster with cluster.address."
            )
    host, colon, port = (address or "").rpartition(":")
    if not colon or "://" in host or not port.isdigit():
        return  # "auto", a file or a scheme of Ray's: only Ray knows what it means
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(_no_cluster(address, error)) from error


def _no_cluster(address: str | None, error: Exception | str) -> str:
    return (
        f"cluster.address must be a Ray cluster that answers; got {address!r}: {error}. "
        "Leave it out, and unset RAY_ADDRESS, to start a local Ray."
    )


def _local_cpus(config: ClusterConfig) -> int:
    """CPUs are logical to Ray: a local one is given as many as were asked for, so that nothing waits for ever."""
    wanted = max(config.max_workers, config.num_explorers or 1) * config.cpus_per_worker
    return max(os.cpu_count() or 1, wanted)
