"""Checks that all machines see the storage. Files in a folder of one machine would be lost to the others."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_PROBE_TIMEOUT_SECONDS = 60.0


@contextmanager
def checked_storage(path: str) -> Iterator[None]:
    """Enters the context after `check_shared` has passed."""
    check_shared(path)
    yield


def check_shared(path: str) -> None:
    """Checks that every other machine of the cluster sees a file that this one writes.

    Args:
        path: The run's folder, created if it is missing. Or a URI, which is not checked: all machines can reach it.

    Raises:
        ValueError: If a machine does not see it.
    """
    probe = StorageProbe(path)
    try:
        probe.probe_new_machines()
        # A machine that is too busy to answer is not counted as a failure.
        if host := probe.find_blind_host(_PROBE_TIMEOUT_SECONDS):
            raise ValueError(_not_shared(path, host))
    finally:
        probe.close()


class StorageProbe:
    """Asks each machine once whether it sees the run's folder, including machines that join during the run."""

    def __init__(self, path: str) -> None:
        """Starts without asking a machine.

        Args:
            path: The run's folder, created if it is missing. Or a URI, which is not checked: all machines can reach it.
        """
        self._path, self._known, self._pending = path, set[str](), dict[Any, str]()
        self._file = Path(path) / f".seen-{uuid.uuid4().hex}"

    def poll(self) -> None:
        """Asks machines that have joined since the last call, and reads the answers so far, without waiting.

        Raises:
            RuntimeError: If a machine does not see the folder, because its results would be lost.
        """
        self.probe_new_machines()
        if host := self.find_blind_host(0):
            raise RuntimeError(f"{_not_shared(self._path, host)} The same command continues from what is stored.")

    def probe_new_machines(self) -> None:
        """Asks the machines that have not been asked yet."""
        if "://" in self._path:
            return
        here = ray.get_runtime_context().get_node_id()
        others = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        new = {node: host for node, host in others.items() if node not in self._known and node != here}
        if new:
            self._known |= set(new)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()
            self._pending |= _probe(self._file, new)

    def find_blind_host(self, timeout_seconds: float) -> str | None:
        """Returns the name of a machine that does not see the folder, or None if no answer so far says so.

        Args:
            timeout_seconds: How long to wait for answers.
        """
        if not self._pending:
            return None
        answered, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=timeout_seconds)
        hosts = [(_is_blind(answer), self._pending.pop(answer)) for answer in answered]
        if not self._pending:
            self.close()
        return next((host for is_blind, host in hosts if is_blind), None)

    def close(self) -> None:
        """Removes the file that machines were asked to see."""
        if "://" not in self._path:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)


def _probe(file: Path, nodes: Mapping[str, str]) -> dict[Any, str]:
    """Asks each machine whether it sees a file. Returns the machines' names by the references of their answers."""
    sees = ray.remote(num_cpus=0)(_sees)
    return {
        # If the node dies, the call raises instead of hanging.
        sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(file)): host
        for node, host in nodes.items()
    }


def _sees(path: str) -> bool:
    return Path(path).is_file()


def _is_blind(answer: Any) -> bool:
    try:
        return ray.get(answer) is False
    except RayError:  # the machine was lost, which is no evidence about the storage
        return False


def _not_shared(path: str, host: str) -> str:
    return (
        "storage must be a folder that all machines share, or a URI such as s3://bucket/path; "
        f"got {path}, which {host} does not see."
    )
