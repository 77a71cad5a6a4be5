"""Joining a running Ray, or starting a local one and ending just that one."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import ray

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.capacity import wait_for_capacity
from suptickets_ray.distributed.cluster.event_queue import OnEvent
from suptickets_ray.distributed.cluster.local_ray import check_local, loopback_only, mark_session, remove_old_sessions
from suptickets_ray.supervisor import report_local_ray, report_lost_ray

TOKEN_PATH = "~/.ray/auth_token"  # noqa: S105 - where Ray keeps it, not the token
_OPEN = (
    "this Ray asks for no token: whoever reaches its ports can run code on its machines. Start every part of it with "
    "RAY_AUTH_MODE=token, and make a token with ray get-auth-token --generate."
)
_NO_TOKEN = (
    "the Ray cluster at {address} must be shown its token; this process has none. Put it into "
    + TOKEN_PATH
    + " (mode 0600), or into RAY_AUTH_TOKEN."
)
_OTHER_TOKEN = "its token is another one than ours"  # noqa: S105 - a sentence
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
        ValueError: If the cluster cannot be reached or wants another token, is not the one this process is connected
            to, or has no room for pretraining, or then for an explorer beside the superposer, within the time that the
            recipe gives.
    """
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if config.address not in (None, "auto", connected):
            raise ValueError(
                f"cluster.address must be {connected}, which this process is connected to; got {config.address!r}. "
                "Leave it out, or call ray.shutdown() first."
            )
        wait_for_capacity(config, lambda text: on_event({"kind": "waiting", "text": text}))
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(config)
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if address:
            close_token_file()
            is_open = _join(address, verbose)
        else:
            make_token()
            stack.enter_context(_quick_start())
            stack.enter_context(loopback_only())
            _start_local(config, verbose)
            stack.enter_context(_losses_reported())
            is_open = not asks_for_token()
        if is_open:
            on_event({"kind": "warning", "text": _OPEN})
        wait_for_capacity(config, lambda text: on_event({"kind": "waiting", "text": text}))
        yield


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


@contextmanager
def _losses_reported() -> Iterator[None]:
    """Tells the supervisor of a local Ray, and of a failure because one of its processes has died."""
    report_local_ray()
    try:
        yield
    except Exception:
        # Ray has no public way to ask.
        node = ray._private.worker._global_node
        if node is None or node.dead_processes():
            report_lost_ray()
        raise


def _logging_level(verbose: bool) -> int:
    return logging.INFO if verbose else logging.CRITICAL


@contextmanager
def _quick_start() -> Iterator[None]:
    """Makes a local Ray start workers, and begin and end pretraining, seconds earlier; the environment overrides it."""
    quick = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # An actor that waits for the notice that a machine is about to be taken away.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # A gcs on this machine that has not answered for so long is dead, and so is this Ray.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
        # Read when Ray starts: each of its workers imports this module first.
        "RAY_preload_python_modules": "suptickets_ray.distributed.cluster.preload",
    }
    added = {name: value for name, value in quick.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:  # the next Ray may be a cluster
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
    """Joins in a thread: where something other than Ray listens, Ray tries for minutes and hears no Ctrl-C.

    Returns:
        Whether the cluster lets in anybody.
    """
    place = _host_and_port(address)
    is_open = lets_in(place) if place else None
    if is_open is False:
        _show_token(address)
        # Ray itself tries for 20 seconds before it says so.
        if place and lets_in(place, _shown_token()) is False:
            raise ValueError(_no_cluster(address, _OTHER_TOKEN))
    elif is_open and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise ValueError(
            f"the Ray cluster at {address} must ask for a token where RAY_AUTH_MODE=token is set; it asks for none. "
            "Start every part of it with RAY_AUTH_MODE=token, or unset that here."
        )
    errors: list[Exception] = []

    def join() -> None:
        try:
            # The place itself, where it is known: for "auto" Ray shows any token, and an open cluster refuses that.
            ray.init(address=place or address, log_to_driver=verbose, logging_level=_logging_level(verbose))
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
        wrong = _OTHER_TOKEN if is_open is False else errors[0]
        raise ValueError(_no_cluster(address, wrong)) from errors[0]
    return bool(is_open)


def _host_and_port(address: str) -> str | None:
    """HOST:PORT of an address that may be "auto"; None where only Ray knows what it means."""
    if "://" in address:
        return None
    with suppress(Exception):  # Ray itself says below what is wrong with it
        # As ray.init() does; Ray has no public way.
        place: str | None = ray._private.services.canonicalize_bootstrap_address(address)
        return place
    return None


def lets_in(place: str, shown: Sequence[tuple[str, str]] = ()) -> bool | None:
    """Asks a cluster for its id: whether it answers; None where no Ray can be heard.

    Args:
        place: HOST:PORT of its head.
        shown: The token, as the headers of the question; none to find out whether anybody is let in.
    """
    import grpc  # type: ignore[import-untyped]  # ray[default] needs it
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with grpc.insecure_channel(place) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(
                GetClusterIdRequest(), timeout=_CONNECT_SECONDS, metadata=shown
            )
        except grpc.RpcError as error:
            refused = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return False if refused else None
    return True


def _show_token(address: str) -> None:
    """Lets this process show its token: joining an address that is named, Ray does not do so by itself.

    Raises:
        ValueError: If there is none, or the environment forbids to show it.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise ValueError(
            f"the Ray cluster at {address} asks for a token, which RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} forbids "
            "to show. Unset it, or set it to token."
        )
    if not asks_for_token():
        raise ValueError(_NO_TOKEN.format(address=address))
    os.environ["RAY_AUTH_MODE"] = "token"
    # The mode was read when Ray was imported. As Ray does where it turns it on itself; there is no public way.
    ray._raylet.Config.initialize("")


def _shown_token() -> list[tuple[str, str]]:
    """The headers in which Ray shows this process's token; there is no public way."""
    return list(ray._raylet.AuthenticationTokenLoader.instance().get_token_for_http_header().items())


def has_token() -> bool:
    """Returns whether no token needs to be made for a local Ray: there is one, or none is wanted."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    wanted = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    return bool(named) or not wanted or Path(TOKEN_PATH).expanduser().exists()


def make_token() -> None:
    """Makes the token that a new local Ray asks for, if there is none: Ray would let everybody here read its file."""
    path = Path(TOKEN_PATH).expanduser()
    if has_token():
        close_token_file()
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    whole = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))  # as Ray makes it
    with suppress(FileExistsError):  # another process was quicker, and its token counts
        path.hardlink_to(whole)
    whole.unlink()


def close_token_file() -> None:
    """Lets nobody but its owner read the token's file: Ray wrote one that everybody here can read."""
    path = Path(TOKEN_PATH).expanduser()
    with suppress(OSError):  # there is none, or it is another user's, who answers for it
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def asks_for_token() -> bool:
    """Returns whether this process has a token to show; a Ray that it starts then asks everybody for it."""
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
        ValueError: If no cluster answers there, or none is named and this machine cannot run the recipe.
    """
    address = cluster_address(config)
    if address is None and not ray.is_initialized():
        check_local(config, makes_token=not has_token())
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
