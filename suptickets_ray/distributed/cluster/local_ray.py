"""A Ray on this machine alone: what it needs is checked before it starts, and it listens on loopback only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from suptickets_ray.config import ClusterConfig

_MARK = "of-suptickets"
_SESSION_SECONDS = 24 * 3600.0
_SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux."""
_SOCKET_PATH = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Longest path that Ray 2.60 makes below its temporary folder."""
_LOOPBACK = {
    # Ray takes a machine that cannot be part of a cluster for 127.0.0.1, and then binds all its ports to that.
    # `_node_ip_address` is replaced by the machine's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}


def check_local(config: ClusterConfig, *, makes_token: bool) -> None:
    """Finds out, without starting it, whether a local Ray can run a recipe.

    Args:
        config: What the run will ask for.
        makes_token: Whether a token has to be written below HOME.

    Raises:
        ValueError: If this machine lacks GPUs, memory or resources that are asked for, or Ray's folders cannot be used.
    """
    import torch  # takes longer to import than all the rest of this module

    found = torch.cuda.device_count()
    remedy = "Leave it out, or name a cluster with cluster.address."
    if config.min_workers * config.gpus_per_worker > found:
        raise ValueError(
            f"cluster.gpus_per_worker must fit this machine's {found} GPUs, {config.min_workers} workers at once; "
            f"got {config.gpus_per_worker:g}. {remedy}"
        )
    if config.gpus_per_worker + config.superposer_gpus > found:
        raise ValueError(
            f"cluster.superposer_gpus must fit this machine's {found} GPUs, beside an explorer's "
            f"{config.gpus_per_worker:g}; got {config.superposer_gpus:g}. {remedy}"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    wanted = config.min_workers * (config.memory_per_worker_gb or 0.0)
    if wanted > memory:
        raise ValueError(
            f"cluster.memory_per_worker_gb must fit this machine's {memory:.0f} GB, {config.min_workers} workers at "
            f"once; got {config.memory_per_worker_gb:g}. {remedy}"
        )
    for key in ("worker_resources", "explorer_resources"):
        if resources := getattr(config, key):
            name = next(iter(resources))
            raise ValueError(f"cluster.{key} must name resources of a cluster; a local Ray has no {name!r}. {remedy}")
    if config.exclude_head_node:
        raise ValueError(f"cluster.exclude_head_node must be false on this machine alone, which is the head. {remedy}")
    _check_folders(makes_token)


def _check_folders(makes_token: bool) -> None:
    temporary = temporary_folder()
    if len(os.fsencode(f"{temporary}/{_SOCKET_PATH}")) > _SOCKET_BYTES:
        most = _SOCKET_BYTES - len(_SOCKET_PATH) - 1
        raise ValueError(
            f"RAY_TMPDIR must be a path of at most {most} bytes, since Ray makes sockets below it; got {temporary!r}. "
            "Set it to a shorter one, e.g. RAY_TMPDIR=/tmp."
        )
    folders = {"RAY_TMPDIR": temporary} | ({"HOME": str(Path("~").expanduser())} if makes_token else {})
    for name, folder in folders.items():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"{name} must be a folder that this user can write; got {folder!r}. Set it to another one."
            )


def temporary_folder() -> str:
    """Returns the folder below which Ray keeps its sessions."""
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def remove_old_sessions(now: float) -> int:
    """Removes the folders of local Rays that this package started more than a day ago and that have ended.

    Args:
        now: Seconds since 1970.

    Returns:
        The number of folders removed.
    """
    removed = 0
    for mark in Path(temporary_folder(), "ray").glob(f"session_*/{_MARK}"):
        session = mark.parent
        with suppress(OSError):  # another process removes it, or it is another user's
            is_old = now - mark.stat().st_mtime > _SESSION_SECONDS and mark.stat().st_uid == os.geteuid()
            if is_old and not session.is_symlink() and not _is_alive(session.name.rpartition("_")[2]):
                shutil.rmtree(session)
                removed += 1
    return removed


def mark_session() -> None:
    """Marks the folder of the Ray that was just started as one that may be removed later."""
    with suppress(OSError, AttributeError):
        Path(ray._private.worker._global_node.get_session_dir_path(), _MARK).touch()


def _is_alive(pid: str) -> bool:
    return not pid.isdigit() or Path("/proc", pid).exists()


@contextmanager
def loopback_only() -> Iterator[None]:
    """Lets a Ray that is started within bind its ports to 127.0.0.1."""
    before = {name: os.environ.get(name) for name in _LOOPBACK}
    constants = ray._private.ray_constants  # read from the environment when Ray was imported
    is_cluster = constants.ENABLE_RAY_CLUSTER
    os.environ.update(_LOOPBACK)
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = is_cluster
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
