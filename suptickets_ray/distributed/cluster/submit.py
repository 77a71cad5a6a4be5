"""A recipe as a job of a Ray cluster: shipped, watched, and its exit code handed back."""

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
from suptickets_ray.distributed.cluster.session import TOKEN_PATH, asks_for_token, close_token_file
from suptickets_ray.recipes.load import to_dict, to_yaml

RECIPE_FILE = "recipe.yaml"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_MOST_FAILURES, _RETRY_SECONDS = 10, 3.0
"""How often in a row a cluster may not answer somebody who watches a job, and how long to wait in between."""


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
    """Starts `suptickets <command>` of the recipe as a job, and shows its output until it ends.

    The recipe is shipped, with the modules of the user's own that it names and that lie in the present folder. What the
    cluster must have is suptickets_ray itself.

    Args:
        config: The resolved recipe.
        command: "train" or "tune".
        address: The dashboard's address, e.g. http://127.0.0.1:8265.
        write: Shows a piece of the job's output.
        wait: Whether to wait for the job's end.
        flags: Options of the command, e.g. "--verbose".
        on_start: Is told the job's id as soon as it is on its way.

    Returns:
        The job's id, and its exit code; None if nobody waited.

    Raises:
        ValueError: If the storage is one that the cluster cannot share, or the cluster cannot be reached or refuses.
    """
    if "://" not in config.storage and not Path(config.storage).is_absolute():
        raise ValueError(
            f"storage must be an absolute path that all machines share, or a URI, for a job; got {config.storage!r}. "
            "The job runs in a folder that goes with it."
        )
    if config.cluster.address not in (None, "auto"):
        raise ValueError(
            f"cluster.address has no effect with --submit, whose job joins the cluster that it runs on; got "
            f"{config.cluster.address!r}. Leave it out."
        )
    close_token_file()
    # Ray's own clients take no notice of a token otherwise.
    if asks_for_token():
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
        except Exception as error:  # of Ray's own kinds, too; none has started anything
            raise ValueError(_refused(address, error)) from error
    on_start(job_id)
    if not wait:
        return job_id, None
    return job_id, watch_job(client, job_id, write)


def watch_job(
    client: Any, job_id: str, write: Callable[[str], None], *, pause: Callable[[float], None] = time.sleep
) -> int:
    """Returns a job's exit code once it has ended. The stream of its output may break off: the job goes on.

    Args:
        client: Ray's `JobSubmissionClient`.
        job_id: The job.
        write: Shows a piece of the output, each piece once.
        pause: Waits so many seconds.

    Raises:
        RuntimeError: If the cluster does not answer any more; the job may go on.
    """
    shown = failures = 0

    async def tail() -> None:
        """Shows what comes after what was shown: a new stream begins at the beginning."""
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
            if failures >= _MOST_FAILURES:
                raise RuntimeError(
                    f"job {job_id} may go on, but the cluster has not answered {failures} times: {error}. See how it "
                    f"is with: ray job logs --follow {job_id}"
                ) from error
        else:
            if info.status in _ENDED:
                code = info.driver_exit_code
                return int(code) if code is not None else int(info.status != "SUCCEEDED")
        pause(_RETRY_SECONDS)


def _pack(config: Config, folder: Path) -> None:
    """Puts into the folder what the job needs of this machine."""
    joined = replace(config, cluster=replace(config.cluster, address="auto"))
    (folder / RECIPE_FILE).write_text(to_yaml(joined))
    for module in sorted(set(own_modules(to_dict(config)))):
        for source in (Path(f"{module}.py"), Path(module)):
            if source.is_file():
                shutil.copy(source, folder)
            elif source.is_dir():
                shutil.copytree(source, folder / module, ignore=shutil.ignore_patterns("__pycache__"))


def own_modules(settings: Any) -> Iterator[str]:
    """Yields the top-level modules that a recipe names as "package.module:function"."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key != "storage":
                yield from own_modules(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from own_modules(value)
    elif isinstance(settings, str) and ":" in settings and "://" not in settings:
        name = settings.partition(":")[0].partition(".")[0]
        if name.isidentifier() and name not in sys.stdlib_module_names:
            yield name


def _refused(address: str, error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if any(word in first_line.lower() for word in ("401", "403", "unauthorized", "authentication", "token")):
        return (
            f"the cluster at {address} must be given its token; it refused: {first_line}. Put the token of the cluster "
            f"into {TOKEN_PATH} (mode 0600), or into RAY_AUTH_TOKEN."
        )
    return (
        f"--submit must be the address of a Ray dashboard that answers, e.g. http://127.0.0.1:8265; got {address!r}: "
        f"{first_line}."
    )
