"""Reads a stored ticket by its path, finds the recipe of its run, and builds the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch.nn import Module

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import load_config, to_dict
from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.search.points import config_of
from suptickets_ray.tickets.run_folder import CONFIG_FILE, EXPLORATIONS_FOLDER, POINTS_FOLDER, SUPERPOSED_FILE
from suptickets_ray.tickets.store import RunStore, child, split_path
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits, load_data
from suptickets_ray.training.data.fingerprint import load_recorded
from suptickets_ray.training.models import build_model

_MAX_FOLDERS_ABOVE = 5
"""Maximum number of folders between run and ticket: <run>/explorations/<key>/tickets/chain-000/cycle-000.arrow."""


@dataclass(frozen=True)
class StoredTicket:
    """A ticket and its file."""

    path: str
    """Absolute local path, or a URI."""
    content: bytes
    """Content of the file."""
    ticket: Ticket

    @property
    def stem(self) -> str:
        """Name of the file without folder and suffix."""
        return PurePosixPath(split_path(self.path)[1]).stem


def read_ticket(path: str) -> StoredTicket:
    """Reads a ticket.

    Args:
        path: Its file, local or on any file system that pyarrow.fs supports.

    Raises:
        ValueError: If the file does not exist, or if it is not an undamaged ticket.
    """
    folder, name = split_path(path)
    full_path = child(folder, name)
    store = RunStore(folder)
    store.check(writes=False, path=name)
    if not name or not store.exists(name):
        superposed = f"{name}/{SUPERPOSED_FILE}"
        hint = f"The sup-ticket of a run is its {SUPERPOSED_FILE}."
        if name and store.exists(superposed):
            hint = f"Did you mean {child(folder, superposed)!r}?"
        raise ValueError(f"the ticket must be an existing Arrow file; got {path!r}. {hint}")
    content = store.read(name)
    try:
        return StoredTicket(full_path, content, Ticket.from_bytes(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_output(path: str) -> None:
    """Checks that a new file can be written to a path, local or on any file system that pyarrow.fs supports.

    Raises:
        ValueError: If a local folder does not exist, or if the path is a folder.
    """
    folder, name = split_path(path)
    if "://" not in path and not Path(folder).is_dir():
        raise ValueError(f"--output must be in an existing folder; got {path!r}. Create the folder first.")
    if not name or ("://" not in path and Path(child(folder, name)).is_dir()):
        raise ValueError(f"--output must be a file; got the folder {path!r}. Add a file name.")


def recipe_of(path: str, recipe: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Returns the recipe of a ticket's run: the config.yaml in the nearest folder above the ticket.

    For a ticket of a search, this is the recipe of its trial.

    Args:
        path: The ticket's file.
        recipe: File or name of a recipe to use instead.
        overrides: Settings of the data, e.g. "data.root=/data".

    Raises:
        ValueError: If the recipe is missing or invalid, or if an override is not a setting of the data.
    """
    for text in overrides:
        if not text.startswith("data."):
            raise ValueError(
                f"an override must be a setting of the data, such as data.root=PATH, because the ticket is already "
                f"trained; got {text!r}. Leave it out."
            )
        if text.startswith(_TRAINING_ONLY):
            raise ValueError(f"{text} has no effect: only training reads it. Leave it out.")
    if recipe is not None:
        return load_config(recipe, overrides)
    for folder, relative in _folders_above(path):
        run = RecordedRun(folder)
        if not run.is_begun:
            continue
        try:
            config = run.config
        except ValueError as error:
            raise ValueError(
                f"Cannot read the recipe {child(folder, CONFIG_FILE)}: {error} Pass the ticket's recipe with --recipe."
            ) from error
        return load_config(to_dict(_trial_recipe(config, folder, relative)), overrides)
    raise ValueError(
        f"Cannot find the ticket's recipe: no folder above {path!r} contains a {CONFIG_FILE}. Pass the recipe with "
        "--recipe."
    )


_TRAINING_ONLY = ("data.batch_size=", "data.crop_padding", "data.flip=")


def splits_of(path: str, config: Config) -> Splits:
    """Returns the data to evaluate a ticket on.

    Args:
        path: The ticket's file.
        config: The recipe that `recipe_of` returned.

    Raises:
        ValueError: As `load_data`, and if the ticket's run used the same data set, but with other examples.
    """
    for folder, _ in _folders_above(path):
        run = RecordedRun(folder)
        if run.is_begun:
            recorded = run.config.data
            if (recorded.name, recorded.options, recorded.split_seed) == (
                config.data.name,
                config.data.options,
                config.data.split_seed,
            ):
                return load_recorded(config.data, run.store)
            break
    return load_data(config.data)


def build_network(config: Config, splits: Splits, ticket: Ticket) -> Module:
    """Returns the recipe's network with the weights of a ticket, on the CPU, in evaluation mode.

    Raises:
        ValueError: If the ticket's tensors do not match the network.
    """
    model = build_model(config.model, splits.sample_shape, splits.num_classes)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(part.shape) for name, part in ticket.parts.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"the ticket must match the recipe's network {config.model.name!r}; {name!r} is "
                f"{found.get(name, 'missing')} in the ticket and {expected.get(name, 'missing')} in the network. "
                "Pass the ticket's recipe with --recipe."
            )
    restore(model, ticket.state_dict())
    return model.eval()


def device_of(config: Config) -> torch.device:
    """Returns the GPU if the recipe trains on GPUs and this machine has one, else the CPU."""
    return torch.device("cuda" if config.cluster.gpus_per_worker > 0 and torch.cuda.is_available() else "cpu")


def _folders_above(path: str) -> Iterator[tuple[str, str]]:
    """Yields the folders above a file, nearest first, each with the file's path relative to it."""
    folder, relative = split_path(path)
    for _ in range(_MAX_FOLDERS_ABOVE):
        yield folder, relative
        parent, name = split_path(folder)
        if not name or parent.partition("?")[0].endswith(("/", ":")):
            return  # a bucket, or the root of a file system
        folder, relative = parent, f"{name}/{relative}"


def _trial_recipe(config: Config, folder: str, relative: str) -> Config:
    """Returns the recipe of a search's trial, by the ticket's path relative to the search; for a run, its recipe."""
    files = SearchFiles(folder)
    if match := re.fullmatch(rf"({POINTS_FOLDER}/[^/]+/seed-(\d+))\.arrow", relative):
        row = f"{match[1]}.json"
        return config_of(config, json.loads(files.store.read(row))["point"], int(match[2]))
    if match := re.fullmatch(rf"{EXPLORATIONS_FOLDER}/([^/]+)/tickets/.*", relative):
        seeds = range(config.search.num_seeds)
        for trial in [config, *(config_of(config, point, number) for point, _ in files.points() for number in seeds)]:
            if exploration_key(trial) == match[1]:
                return trial
        raise ValueError(
            f"Cannot find the recipe of the ticket {relative!r} in the search {folder!r}: no finished trial uses this "
            "ticket. Pass the recipe with --recipe."
        )
    return config
