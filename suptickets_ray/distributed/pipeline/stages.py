"""Stages common to runs and searches: their folder, pretraining, and failures after the start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from suptickets_ray.config import Config
from suptickets_ray.distributed.cluster.session import local_cores
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.progress.events import OnEvent, Resumed, Warned
from suptickets_ray.recipes.machine import with_machine_choices, with_recorded
from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.search.keys import pretraining_key
from suptickets_ray.tickets.run_folder import PRETRAINED_FILE, RAY_TRAIN_FOLDER
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.checkpoint import is_whole, read_progress


def run_path(config: Config) -> str:
    """Returns the absolute path or URI of the run's folder.

    Raises:
        ValueError: If the storage is a URI that pyarrow.fs does not support.
    """
    if "://" in config.storage:
        path = child(config.storage, config.name)
        RunStore(path)
        return path
    return str((Path(config.storage).expanduser() / config.name).absolute())


def choose_for_machine(config: Config, files: RecordedRun, *, searches: bool = False) -> Config:
    """Returns the recipe with everything that it leaves to "auto": as an earlier start has chosen, or for this machine.

    Args:
        config: The recipe, resolved.
        files: The folder of the run or search.
        searches: Whether this is a search.

    Raises:
        ValueError: If the precision cannot be measured here, or the data cannot be read.
    """
    if files.is_begun:
        with contextlib.suppress(ValueError):  # damaged, which is refused when the folder is compared with the recipe
            config = with_recorded(config, files.config)
    return with_machine_choices(config, local_cores(config.cluster), searches=searches)


def pretrained_state(context: WorkerContext, on_event: OnEvent, verbose: bool) -> bytes:
    """Returns the final state of pretraining. Trains it unless an earlier start of the run has finished it."""
    files = RecordedRun(context.run_path)
    if files.is_pretrained:
        state = files.pretrained_state()
        if is_whole(state) and read_progress(state).get("recipe") == int(pretraining_key(context.config), 16):
            on_event(Resumed("the finished pretraining"))
            files.store.remove_folder(RAY_TRAIN_FOLDER)  # its checkpoints are needed only by an unfinished pretraining
            return state
        on_event(Warned(f"{PRETRAINED_FILE} is damaged or belongs to another run; pretraining restarts."))
    # Imported here: Ray Train takes seconds to import, and a finished or refused run does not need it.
    from suptickets_ray.distributed.pipeline.pretrain import pretrain

    state = pretrain(context, RAY_TRAIN_FOLDER, on_event, verbose=verbose)
    files.write_pretrained_state(state)
    files.store.remove_folder(RAY_TRAIN_FOLDER)
    return state


@contextlib.contextmanager
def as_run_failure() -> Iterator[None]:
    """Raises ValueErrors as RuntimeErrors. After the start, a damaged file or a worker causes them, not the recipe."""
    try:
        yield
    except ValueError as error:
        raise RuntimeError(str(error)) from error
