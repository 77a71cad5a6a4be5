"""What a run and a search have in common: their folder, pretraining, and failures after the start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.distributed.cluster.event_queue import OnEvent
from suptickets_ray.recipes.load import to_yaml
from suptickets_ray.search.keys import pretraining_key
from suptickets_ray.tickets.store import PRETRAINED_FILE, RunStore, child
from suptickets_ray.training.checkpoint import is_whole, read_progress
from suptickets_ray.training.data.fingerprint import DATA_FILE

RAY_TRAIN_FOLDER = "ray_train"


def run_path(config: Config) -> str:
    """Returns the absolute path or URI of the run's folder.

    Raises:
        ValueError: If the storage is a URI that pyarrow.fs does not know.
    """
    if "://" in config.storage:
        path = child(config.storage, config.name)
        RunStore(path)
        return path
    return str((Path(config.storage).expanduser() / config.name).absolute())


def begin_folder(store: RunStore, config: Config, data: str) -> None:
    """Writes into the folder of a run or search what it is, so that nothing else is ever done in it."""
    store.remove_temporaries()
    store.write("config.yaml", to_yaml(config).encode())
    store.write(DATA_FILE, data.encode())


def pretrained_state(
    config: Config, settings: dict[str, Any], store: RunStore, on_event: OnEvent, verbose: bool
) -> bytes:
    """Returns the state that pretraining ends in, trained unless an earlier start of the run has done that."""
    if store.exists(PRETRAINED_FILE):
        state = store.read(PRETRAINED_FILE)
        if is_whole(state) and read_progress(state).get("recipe") == int(pretraining_key(config), 16):
            on_event({"kind": "resumed", "what": "the finished pretraining"})
            store.remove_folder(RAY_TRAIN_FOLDER)  # its checkpoints only serve a pretraining that is not finished
            return state
        on_event(
            {
                "kind": "warning",
                "text": f"{PRETRAINED_FILE} is damaged or belongs to another run; pretraining is trained again.",
            }
        )
    # Ray Train takes seconds to import, and an answer that all is done, or a refusal, does not need it.
    from suptickets_ray.distributed.pipeline.pretrain import pretrain

    state = pretrain(config, settings, RAY_TRAIN_FOLDER, on_event, verbose=verbose)
    store.write(PRETRAINED_FILE, state)
    store.remove_folder(RAY_TRAIN_FOLDER)
    return state


@contextlib.contextmanager
def as_run_failure() -> Iterator[None]:
    """A failure here comes after the start, so it is none of the settings': a damaged file, or a worker's own error."""
    try:
        yield
    except ValueError as error:
        raise RuntimeError(str(error)) from error
