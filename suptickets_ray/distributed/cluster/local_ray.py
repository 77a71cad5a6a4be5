"""A local Ray: its requirements are checked before it starts, and it listens on the loopback interface only."""

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
"""Maximum length of a Unix socket's path on Linux."""
_SOCKET_PATH = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Example of the longest path that Ray 2.60 creates below its temporary folder."""
_LOOPBACK = {
    # With clusters disabled, Ray uses 127.0.0.1 as the machine's address, and binds all its ports to it.
    # Setting `_node_ip_address` does not work: Ray replaces it by the machine's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}


def check_local(config: ClusterConfig, *, makes_token: bool) -> None:
    """Checks whether a local Ray can run a recipe, without starting it.

    Args:
        config: The resource requests of the run.
        makes_token: Whether a token must be written below HOME.

    Raises:
        ValueError: If this machine lacks requested GPUs, memory or custom resources, or Ray's folders are unusable.
    """
    import torch  # imported late because it takes longer than the rest of this module

    found = torch.cuda.device_count()
    remedy = "Leave it out, or name a cluster with cluster.address."
    if config.min_workers * config.gpus_per_worker > found:
        raise ValueError(
            f"cluster.gpus_per_worker must fit this machine's {found} GPUs with {config.min_workers} concurrent "
            f"workers; got {config.gpus_per_worker:g}. {remedy}"
        )
    if config.explorer_gpus + config.superposer_gpus > found:
        raise ValueError(
            f"cluster.superposer_gpus must fit this machine's {found} GPUs beside an explorer's "
            f"{config.explorer_gpus:g}; got {config.superposer_gpus:g}. {remedy}"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    wanted = config.min_workers * (config.memory_per_worker_gb or 0.0)
    if wanted > memory:
        raise ValueError(
            f"cluster.memory_per_worker_gb must fit this machine's {memory:.0f} GB with {config.min_workers} "
            f"concurrent workers; got {config.memory_per_worker_gb:g}. {remedy}"
        )
    for key in ("worker_resources", "explorer_resources"):
        if resources := getattr(config, key):
            name = next(iter(resources))
            raise ValueError(
                f"cluster.{key} must name resources of a cluster; got {name!r}, which a local Ray lacks. {remedy}"
            )
    if config.exclude_head_node:
        raise ValueError(
            f"cluster.exclude_head_node must be false for a local Ray, whose only machine is the head; got true. "
            f"{remedy}"
        )
    _check_folders(makes_token)


def _check_folders(makes_token: bool) -> None:
    temporary = temporary_folder()
    if len(os.fsencode(f"{temporary}/{_SOCKET_PATH}")) > _SOCKET_BYTES:
        max_bytes = _SOCKET_BYTES - len(_SOCKET_PATH) - 1
        raise ValueError(
            f"RAY_TMPDIR must be a path of at most {max_bytes} bytes, because Ray creates sockets below it; "
            f"got {temporary!r}. Set it to a shorter path, e.g. RAY_TMPDIR=/tmp."
        )
    folders = {"RAY_TMPDIR": temporary} | ({"HOME": str(Path("~").expanduser())} if makes_token else {})
    for name, folder in folders.items():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"{name} must be a folder that this user can write; got {folder!r}. Set it to another folder."
            )


def temporary_folder() -> str:
    """Returns the parent folder of Ray's session folders."""
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def remove_old_sessions(now: float) -> int:
    """Removes session folders of local Rays that this package started more than a day ago and that have ended.

    Args:
        now: Seconds since 1970.

    Returns:
        The number of folders removed.
    """
    removed = 0
    for mark in Path(temporary_folder(), "ray").glob(f"session_*/{_MARK}"):
        session = mark.parent
        with suppress(OSError):  # removed by another process, or owned by another user
            is_old = now - mark.stat().st_mtime > _SESSION_SECONDS and mark.stat().st_uid == os.geteuid()
            if is_old and not session.is_symlink() and not _is_alive(session.name.rpartition("_")[2]):
                shutil.rmtree(session)
                removed += 1
    return removed


def mark_session() -> None:
    """Marks the session folder of the Ray that was just started, so that it may be removed later."""
    with suppress(OSError, AttributeError):
        Path(ray._private.worker._global_node.get_session_dir_path(), _MARK).touch()


def _is_alive(pid: str) -> bool:
    return not pid.isdigit() or Path("/proc", pid).exists()


@contextmanager
def loopback_only() -> Iterator[None]:
    """Makes a Ray that is started within the context bind its ports to 127.0.0.1."""
    before = {name: os.environ.get(name) for name in _LOOPBACK}
    constants = ray._private.ray_constants  # Ray read the environment when it was imported
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
