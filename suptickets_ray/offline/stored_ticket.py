"""One ticket by the path of its file, the recipe of the run that it lies in, and the network of both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch.nn import Module

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import from_yaml, load_config, to_dict
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.search.space import config_of
from suptickets_ray.tickets.store import RunStore, child, split_path
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits, load_data
from suptickets_ray.training.data.fingerprint import load_recorded
from suptickets_ray.training.models import build_model

_DEEPEST = 5
"""How many folders above a ticket a run's may be: <run>/explorations/<key>/tickets/chain-000/cycle-000.arrow."""


@dataclass(frozen=True)
class StoredTicket:
    """A ticket and the file that it was read from."""

    path: str
    """Absolute local path, or a URI."""
    content: bytes
    """The file as it is."""
    ticket: Ticket

    @property
    def stem(self) -> str:
        """The file's name without folder and suffix."""
        return PurePosixPath(split_path(self.path)[1]).stem


def read_ticket(path: str) -> StoredTicket:
    """Reads a ticket.

    Args:
        path: Its file, local or on any file system that pyarrow.fs knows.

    Raises:
        ValueError: If there is no such file, or it is not a whole ticket.
    """
    folder, name = split_path(path)
    whole = child(folder, name)
    store = RunStore(folder)
    if not name or not store.exists(name):
        inside = f"{name}/superposed.arrow"
        hint = "A run's sup-ticket is its superposed.arrow."
        if name and store.exists(inside):
            hint = f"Did you mean {child(folder, inside)!r}?"
        raise ValueError(f"the ticket must be an Arrow file that is there; got {path!r}. {hint}")
    content = store.read(name)
    try:
        return StoredTicket(whole, content, Ticket.from_bytes(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_output(path: str) -> None:
    """Finds out whether a new file can lie there: a local path, or one on any file system that pyarrow.fs knows.

    Raises:
        ValueError: If its folder is not there, or it is a folder.
    """
    folder, name = split_path(path)
    if "://" not in path and not Path(folder).is_dir():
        raise ValueError(f"--output must lie in a folder that is there; got {path!r}. Create it first.")
    if not name or ("://" not in path and Path(child(folder, name)).is_dir()):
        raise ValueError(f"--output must be a file; {path!r} is a folder. Name a file in it.")


def recipe_of(path: str, recipe: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Returns the recipe of the run that a ticket lies in: the nearest config.yaml above it.

    The recipe of a ticket in a search's folder is that of its trial.

    Args:
        path: The ticket's file.
        recipe: Another recipe's file or name, to use instead.
        overrides: Settings of the data, e.g. "data.root=/data".

    Raises:
        ValueError: If there is no recipe, it is none, or an override is no setting of the data.
    """
    for text in overrides:
        if not text.startswith("data."):
            raise ValueError(
                f"an override must be a setting of the data, such as data.root=PATH: the ticket is as it is; "
                f"got {text!r}. Leave it out."
            )
        if text.startswith(_UNREAD):
            raise ValueError(f"{text} has no effect: it acts in training only. Leave it out.")
    if recipe is not None:
        return load_config(recipe, overrides)
    for folder, below in _folders_above(path):
        store = RunStore(folder)
        if not store.exists("config.yaml"):
            continue
        try:
            config = from_yaml(store.read("config.yaml").decode())
        except ValueError as error:
            raise ValueError(
                f"{child(folder, 'config.yaml')} must be the recipe of a run; {error} Name the ticket's with --recipe."
            ) from error
        return load_config(to_dict(_of_trial(config, folder, below)), overrides)
    raise ValueError(
        f"the ticket must lie in the folder of a run, whose config.yaml is its recipe; there is none above {path!r}. "
        "Name one with --recipe."
    )


_UNREAD = ("data.batch_size=", "data.crop_padding", "data.flip=")


def splits_of(path: str, config: Config) -> Splits:
    """Returns the data to evaluate a ticket on.

    Args:
        path: The ticket's file.
        config: What `recipe_of` gave.

    Raises:
        ValueError: As `load_data`, and if the ticket lies in the folder of a run on the same data set, whose examples
            differ from these.
    """
    for folder, _ in _folders_above(path):
        store = RunStore(folder)
        if store.exists("config.yaml"):
            own = from_yaml(store.read("config.yaml").decode()).data
            if (own.name, own.options, own.split_seed) == (
                config.data.name,
                config.data.options,
                config.data.split_seed,
            ):
                return load_recorded(config.data, store)
            break
    return load_data(config.data)


def build_network(config: Config, splits: Splits, ticket: Ticket) -> Module:
    """Returns the recipe's network with the weights of a ticket, on the CPU, ready for inference.

    Raises:
        ValueError: If the ticket is not one of this network.
    """
    model = build_model(config.model, splits.sample_shape, splits.num_classes)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(part.shape) for name, part in ticket.parts.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"the ticket must be one of the recipe's network {config.model.name!r}; {name!r} is "
                f"{found.get(name, 'missing')} in the ticket and {expected.get(name, 'missing')} in the network. "
                "Name the ticket's own recipe with --recipe."
            )
    restore(model, ticket.state_dict())
    return model.eval()


def device_of(config: Config) -> torch.device:
    """Returns a GPU where the recipe trains on one and this machine has one; else the CPU."""
    return torch.device("cuda" if config.cluster.gpus_per_worker > 0 and torch.cuda.is_available() else "cpu")


def _folders_above(path: str) -> Iterator[tuple[str, str]]:
    """Every folder above a file, nearest first, and the file's path in it."""
    folder, below = split_path(path)
    for _ in range(_DEEPEST):
        yield folder, below
        above, name = split_path(folder)
        if not name or above.partition("?")[0].endswith(("/", ":")):
            return  # a bucket, or the root of a file system
        folder, below = above, f"{name}/{below}"


def _of_trial(config: Config, folder: str, below: str) -> Config:
    """The recipe of a search's trial, by where its ticket lies in the search's folder; the run's own otherwise."""
    files = SearchFiles(folder)
    if match := re.fullmatch(r"(points/[^/]+/seed-(\d+))\.arrow", below):
        row = f"{match[1]}.json"
        return config_of(config, json.loads(files.store.read(row))["point"], int(match[2]))
    if match := re.fullmatch(r"explorations/([^/]+)/tickets/.*", below):
        seeds = range(config.search.num_seeds)
        for trial in [config, *(config_of(config, point, number) for point, _ in files.points() for number in seeds)]:
            if exploration_key(trial) == match[1]:
                return trial
        raise ValueError(
            f"the search {folder!r} must say which recipe the ticket {below!r} is of; no trial that is done has it. "
            "Name one with --recipe."
        )
    return config
