"""Whether all machines see the storage: a folder that only one of them has loses what the others do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ANSWER_SECONDS = 60.0


@contextmanager
def checked_storage(path: str) -> Iterator[None]:
    """Enters once `check_shared` has found nothing."""
    check_shared(path)
    yield


def check_shared(path: str) -> None:
    """Asks every other machine of the cluster whether it sees a file that this one writes.

    Args:
        path: The run's folder, made if it is not there, or a URI, which all machines can reach.

    Raises:
        ValueError: If a machine does not see it.
    """
    machines = JoiningMachines(path)
    try:
        machines.ask()
        if blind := machines.blind(_ANSWER_SECONDS):  # a machine that is too busy to answer is no proof
            raise ValueError(_not_shared(path, blind))
    finally:
        machines.close()


class JoiningMachines:
    """Asks each machine once whether it sees the run's folder: also those that come while the run works."""

    def __init__(self, path: str) -> None:
        """Asks nobody yet.

        Args:
            path: The run's folder, made if it is not there, or a URI, which all machines can reach.
        """
        self._path, self._known, self._asked = path, set[str](), dict[Any, str]()
        self._probe = Path(path) / f".seen-{uuid.uuid4().hex}"

    def look(self) -> None:
        """Asks those that have come since the last call, and hears who has answered, without waiting.

        Raises:
            RuntimeError: If a machine does not see the folder: what is made there would be lost.
        """
        self.ask()
        if blind := self.blind(0):
            raise RuntimeError(f"{_not_shared(self._path, blind)} The same command goes on from what is stored.")

    def ask(self) -> None:
        """Asks the machines that have not been asked."""
        if "://" in self._path:
            return
        here = ray.get_runtime_context().get_node_id()
        others = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        new = {node: host for node, host in others.items() if node not in self._known and node != here}
        if new:
            self._known |= set(new)
            self._probe.parent.mkdir(parents=True, exist_ok=True)
            self._probe.touch()
            self._asked |= _ask(self._probe, new)

    def blind(self, seconds: float) -> str | None:
        """Returns the name of a machine that has answered that it does not see the folder; None if all do so far.

        Args:
            seconds: How long to wait for answers.
        """
        if not self._asked:
            return None
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=seconds)
        hosts = [(_says_no(answer), self._asked.pop(answer)) for answer in answered]
        if not self._asked:
            self.close()
        return next((host for is_blind, host in hosts if is_blind), None)

    def close(self) -> None:
        """Removes what machines were asked to see."""
        if "://" not in self._path:
            with suppress(OSError):
                self._probe.unlink(missing_ok=True)


def _ask(probe: Path, nodes: Mapping[str, str]) -> dict[Any, str]:
    """Asks each machine whether it sees a file; returns the names of the machines by their answers to come."""
    sees = ray.remote(num_cpus=0)(_sees)
    return {
        # Of one that goes away the answer is an error, not a wait for ever.
        sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(probe)): host
        for node, host in nodes.items()
    }


def _sees(path: str) -> bool:
    return Path(path).is_file()


def _says_no(answer: Any) -> bool:
    try:
        return ray.get(answer) is False
    except RayError:  # the machine went away before Ray knew: no proof
        return False


def _not_shared(path: str, host: str) -> str:
    return (
        "storage must be a folder that all machines share, or a URI such as s3://bucket/path; "
        f"{host} does not see {path}."
    )
