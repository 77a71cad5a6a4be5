"""Submits a recipe as a job to a Ray cluster, follows its output, and returns its exit code."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.distributed.cluster.token import TOKEN_PATH, requires_token, restrict_token_file
from suptickets_ray.recipes.load import to_dict, to_yaml

RECIPE_FILE = "recipe.yaml"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_MAX_FAILURES, _RETRY_SECONDS = 10, 3.0
"""Consecutive failed requests after which following a job is given up, and the time between two requests."""


def submit(
    config: Config,
    command: str,
    address: str,
    write: Callable[[str], None],
    *,
    wait: bool = True,
    flags: Sequence[str] = (),
    on_start: Callable[[str], None] = lambda job_id: None,
) -> tuple[str, int | None]:
    """Starts `suptickets <command>` with the recipe as a job, and shows its output until it ends.

    The job's working folder holds the recipe, and the user-defined modules that it names and that are in the current
    folder. suptickets_ray itself must be installed on the cluster.

    Args:
        config: The resolved recipe.
        command: "train" or "tune".
        address: Address of the dashboard, e.g. http://127.0.0.1:8265.
        write: Called with each piece of the job's output.
        wait: Whether to wait until the job ends.
        flags: Command-line options, e.g. "--verbose".
        on_start: Called with the job's id once it is submitted.

    Returns:
        The job's id, and its exit code; None with `wait=False`.

    Raises:
        ValueError: If the cluster cannot share the storage, is unreachable, or refuses the job.
    """
    if "://" not in config.storage and not Path(config.storage).is_absolute():
        raise ValueError(
            f"storage must be an absolute path that all machines share, or a URI, for a job; got {config.storage!r}. "
            "The job's working folder is deleted after it."
        )
    if config.cluster.address not in (None, "auto"):
        raise ValueError(
            f"cluster.address has no effect with --submit, because the job joins the cluster that it runs on; got "
            f"{config.cluster.address!r}. Leave it out."
        )
    restrict_token_file()
    # Without this mode, Ray's clients send no token.
    if requires_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    with tempfile.TemporaryDirectory() as folder:
        _pack(config, Path(folder))
        try:
            client = JobSubmissionClient(address)
            job_id = client.submit_job(
                entrypoint=f"python -m suptickets_ray.cli {shlex.join([command, *flags, RECIPE_FILE])}",
                runtime_env={"working_dir": folder},
                metadata={"suptickets": config.name},
            )
        except Exception as error:  # includes Ray's error types; no job was started
            raise ValueError(_submission_error(address, error)) from error
    on_start(job_id)
    if not wait:
        return job_id, None
    return job_id, watch_job(client, job_id, write)


def watch_job(
    client: Any, job_id: str, write: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Returns a job's exit code once it has ended. A broken output stream is reopened while the job keeps running.

    Args:
        client: Ray's `JobSubmissionClient`.
        job_id: Id of the job.
        write: Called with each piece of the output, once.
        sleep: Called with the seconds to sleep.

    Raises:
        RuntimeError: If the cluster stops answering. The job may still be running.
    """
    shown = failures = 0

    async def tail() -> None:
        """Writes only new output, because every stream starts at the beginning."""
        nonlocal shown
        received = 0
        async for piece in client.tail_job_logs(job_id):
            received += len(piece)
            if received > shown:
                write(piece[shown - received :])
                shown = received

    while True:
        try:
            asyncio.run(tail())
            info = client.get_job_info(job_id)
            failures = 0
        except Exception as error:
            failures += 1
            if failures >= _MAX_FAILURES:
                raise RuntimeError(
                    f"Cannot follow job {job_id}: the cluster has not answered {failures} times in a row: {error}. The "
                    f"job may still be running. Follow it with: ray job logs --follow {job_id}"
                ) from error
        else:
            if info.status in _ENDED:
                code = info.driver_exit_code
                return int(code) if code is not None else int(info.status != "SUCCEEDED")
        sleep(_RETRY_SECONDS)


def _pack(config: Config, folder: Path) -> None:
    """Copies the recipe and the user-defined modules that it names into the job's working folder."""
    joined = replace(config, cluster=replace(config.cluster, address="auto"))
    (folder / RECIPE_FILE).write_text(to_yaml(joined))
    for module in sorted(set(user_modules(to_dict(config)))):
        for source in (Path(f"{module}.py"), Path(module)):
            if source.is_file():
                shutil.copy(source, folder)
            elif source.is_dir():
                shutil.copytree(source, folder / module, ignore=shutil.ignore_patterns("__pycache__"))


def user_modules(settings: Any) -> Iterator[str]:
    """Yields the top-level modules that a recipe names as "package.module:function"."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key != "storage":
                yield from user_modules(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from user_modules(value)
    elif isinstance(settings, str) and ":" in settings and "://" not in settings:
        name = settings.partition(":")[0].partition(".")[0]
        if name.isidentifier() and name not in sys.stdlib_module_names:
            yield name


def _submission_error(address: str, error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if any(word in first_line.lower() for word in ("401", "403", "unauthorized", "authentication", "token")):
        return (
            f"Cannot submit a job to {address}: the cluster requires its token: {first_line}. Put the cluster's token "
            f"into {TOKEN_PATH} (mode 0600), or into RAY_AUTH_TOKEN."
        )
    return (
        f"--submit must be the address of a Ray dashboard that answers, e.g. http://127.0.0.1:8265; got {address!r}: "
        f"{first_line}."
    )
