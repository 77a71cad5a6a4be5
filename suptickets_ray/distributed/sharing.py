"""Whether all machines see the storage: a folder that only one of them has loses what the others do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

_ANSWER_SECONDS = 60.0


def _sees(path: str) -> bool:
    return Path(path).is_file()


def _says_no(answer: Any) -> bool:
    try:
        return ray.get(answer) is False
    except RayError:  # the machine went away before Ray knew: no proof
        return False


@contextmanager
def checked_storage(path: str) -> Iterator[None]:
    """Enters once `check_shared` has found nothing."""
    check_shared(path)
    yield


def check_shared(path: str) -> None:
    """Asks every other machine of the cluster whether it sees a file that this one writes.

    Args:
        path: The run's folder, which exists, or a URI, which all machines can reach.

    Raises:
        ValueError: If a machine does not see it.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    others.pop(here, None)
    if "://" in path or not others:
        return
    probe = Path(path) / f".seen-{uuid.uuid4().hex}"
    probe.touch()
    sees = ray.remote(num_cpus=0)(_sees)
    try:
        asked = {
            sees.options(label_selector={"ray.io/node-id": node}).remote(str(probe)): host
            for node, host in others.items()
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
        # A machine that is too busy to answer is no proof.
        blind = [asked[answer] for answer in answered if _says_no(answer)]
    finally:
        probe.unlink(missing_ok=True)
    if blind:
        raise ValueError(
            f"storage must be a folder that all {len(others) + 1} machines share, or a URI such as s3://bucket/path; "
            f"{blind[0]} does not see {path}."
        )
