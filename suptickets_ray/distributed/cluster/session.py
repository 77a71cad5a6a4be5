"""Connects to a running Ray cluster, or starts a local Ray and ends it afterwards."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import ray

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.capacity import explorer_bundle, worker_bundle
from suptickets_ray.distributed.cluster.local_ray import check_local, loopback_only, mark_session, remove_old_sessions
from suptickets_ray.distributed.cluster.token import (
    enable_token,
    ensure_token,
    has_token,
    requires_token,
    restrict_token_file,
    token_headers,
)
from suptickets_ray.distributed.cluster.watchdog import wait_for_capacity
from suptickets_ray.progress.events import OnEvent, Starting, Waiting, Warned
from suptickets_ray.supervisor import report_local_ray, report_lost_ray

_OPEN = (
    "this Ray is not authenticated: anyone who can reach its ports can run code on its machines. Start every node of "
    "it with RAY_AUTH_MODE=token, and create a token with ray get-auth-token --generate."
)
_WRONG_TOKEN = "its token differs from this process's"  # noqa: S105 - an error text
_CONNECT_SECONDS = 10
_JOIN_SECONDS = 60


@contextmanager
def ray_session(
    config: ClusterConfig, on_event: OnEvent = lambda event: None, *, verbose: bool = False
) -> Iterator[None]:
    """Keeps this process connected to Ray.

    If this process has already initialized Ray, that connection is used and kept. Otherwise the process joins the
    cluster at `cluster.address` or RAY_ADDRESS, and disconnects at the end. Without an address it starts a local Ray,
    and ends it.

    Args:
        config: The address, and the resource requests of the run.
        on_event: Called with `Starting` and `Waiting` events, and with `Warned` if the cluster is not authenticated.
        verbose: Whether Ray's messages and the workers' output are shown.

    Raises:
        ValueError: If the cluster is unreachable, requires another token, or is not the one this process is connected
            to. Also if pretraining, or afterwards an explorer beside the superposer, does not fit the cluster within
            `resource_timeout_minutes`.
    """
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if config.address not in (None, "auto", connected):
            raise ValueError(
                f"cluster.address must be {connected}, which this process is connected to; got {config.address!r}. "
                "Leave it out, or call ray.shutdown() first."
            )
        wait_for_capacity(config, lambda text: on_event(Waiting(text)))
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(config)
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if address:
            restrict_token_file()
            on_event(Starting(f"the connection to the Ray cluster at {address}"))
            is_open = _join(address, verbose)
        else:
            on_event(Starting("Ray on this machine"))
            ensure_token()
            stack.enter_context(_quick_start())
            stack.enter_context(loopback_only())
            stack.enter_context(_report_losses())
            _start_local(config, verbose)
            is_open = not requires_token()
        if is_open:
            on_event(Warned(_OPEN))
        wait_for_capacity(config, lambda text: on_event(Waiting(text)))
        yield


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Defers SIGINT and SIGTERM until Ray has started. An interrupted start would leave processes behind.

    Ray also replaces the SIGTERM handler, so the earlier handlers are restored afterwards.
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


@contextmanager
def _report_losses() -> Iterator[None]:
    """Reports a local Ray to the supervisor, and whether it failed to start or lost one of its processes."""
    report_local_ray()
    try:
        yield
    except Exception as error:  # raised again
        # Ray has no public API for it. Without a node Ray did not start; a ValueError would be raised at every start.
        node = ray._private.worker._global_node
        if node.dead_processes() if node else not isinstance(error, ValueError):
            report_lost_ray()
        raise


def _logging_level(verbose: bool) -> int:
    return logging.INFO if verbose else logging.CRITICAL


@contextmanager
def _quick_start() -> Iterator[None]:
    """Sets variables with which a local Ray starts workers and pretraining faster. Variables set by the user remain."""
    quick = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # The watcher is one more actor to start; it waits for preemption notices.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # A local gcs that has not answered for 30 s is dead, and the local Ray with it.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
        # Ray reads it at its start; each worker imports this module first.
        "RAY_preload_python_modules": "suptickets_ray.distributed.cluster.preload",
    }
    added = {name: value for name, value in quick.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:  # the next session may join a cluster
            os.environ.pop(name, None)


def _start_local(config: ClusterConfig, verbose: bool) -> None:
    remove_old_sessions(time.time())
    with _interrupts_deferred():
        ray.init(
            address="local",
            num_cpus=_local_cpus(config),
            include_dashboard=False,
            log_to_driver=verbose,
            logging_level=_logging_level(verbose),
        )
        mark_session()


def _join(address: str, verbose: bool) -> bool:
    """Joins a cluster in a thread, because Ray may retry for minutes and ignores Ctrl-C meanwhile.

    Returns:
        Whether the cluster accepts connections without a token.
    """
    host_port = _host_and_port(address)
    is_open = accepts(host_port) if host_port else None
    if is_open is False:
        enable_token(address)
        # Ray itself would retry for 20 seconds before it reports a wrong token.
        if host_port and accepts(host_port, token_headers()) is False:
            raise ValueError(_no_cluster(address, _WRONG_TOKEN))
    elif is_open and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise ValueError(
            f"Cannot join the Ray cluster at {address}: it requires no token, but RAY_AUTH_MODE=token is set. Start "
            "every node of it with RAY_AUTH_MODE=token, or unset RAY_AUTH_MODE here."
        )
    errors: list[Exception] = []

    def join() -> None:
        try:
            # Not "auto": with it Ray sends any token that it finds, and an unauthenticated cluster refuses a token.
            ray.init(address=host_port or address, log_to_driver=verbose, logging_level=_logging_level(verbose))
        except Exception as error:  # noqa: BLE001 - raised again below, in the main thread
            errors.append(error)

    thread = threading.Thread(target=join, name="join-ray", daemon=True)
    thread.start()
    deadline = time.monotonic() + _JOIN_SECONDS
    while thread.is_alive():
        thread.join(0.1)
        if time.monotonic() > deadline:
            raise ValueError(_no_cluster(address, f"no answer within {_JOIN_SECONDS} s"))
    if errors:
        reason = _WRONG_TOKEN if is_open is False else errors[0]
        raise ValueError(_no_cluster(address, reason)) from errors[0]
    return bool(is_open)


def _host_and_port(address: str) -> str | None:
    """Returns HOST:PORT of an address that may be "auto", or None if only Ray can resolve it."""
    if "://" in address:
        return None
    with suppress(Exception):  # ray.init() reports a wrong address later
        # ray.init() makes the same call; Ray has no public API for it.
        host_port: str | None = ray._private.services.canonicalize_bootstrap_address(address)
        return host_port
    return None


def accepts(host_port: str, token_headers: Sequence[tuple[str, str]] = ()) -> bool | None:
    """Returns whether a cluster accepts a request for its id, or None if no Ray answers.

    Args:
        host_port: HOST:PORT of the cluster's head.
        token_headers: The token as request headers. Empty to check whether a token is required.
    """
    import grpc  # type: ignore[import-untyped]  # ray[default] needs it
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with grpc.insecure_channel(host_port) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(
                GetClusterIdRequest(), timeout=_CONNECT_SECONDS, metadata=token_headers
            )
        except grpc.RpcError as error:
            refused = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return False if refused else None
    return True


def cluster_address(config: ClusterConfig) -> str | None:
    """Returns the address of the Ray cluster to join, or None to start a local Ray."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


def check_address(config: ClusterConfig) -> None:
    """Checks that a process listens at the cluster's address, or that this machine can run a local Ray.

    Raises:
        ValueError: If nothing answers there, or there is no address and this machine cannot run the recipe.
    """
    address = cluster_address(config)
    if address is None and not ray.is_initialized():
        check_local(config, makes_token=not has_token())
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or "://" in host or not port.isdigit():
        return  # only Ray can resolve "auto", a file or one of its schemes
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
    """Returns the number of CPUs of a local Ray. Ray's CPUs are logical, so every request can be satisfied."""
    wanted = max(
        config.max_workers * worker_bundle(config)["CPU"], (config.num_explorers or 1) * explorer_bundle(config)["CPU"]
    )
    return max(os.cpu_count() or 1, int(wanted))


def local_cores(config: ClusterConfig) -> int | None:
    """Returns the cores of this machine if it is all that Ray uses, or None on a cluster."""
    return None if cluster_address(config) else len(os.sched_getaffinity(0))
