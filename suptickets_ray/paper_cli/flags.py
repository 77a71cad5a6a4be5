"""The public code's flags: which setting each decides here, or what there is instead; and reading a command line."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from suptickets_ray.lookup import choose, suggestion
from suptickets_ray.training.models import MODELS

FIRST_MASK_NAMES = {"ERK": "erk", "GMP": "GMP", "uniform": "uniform"} | {
    name: name
    for how in ("prune", "prune_and_grow")
    for name in (f"{how}_uniform", f"{how}_global", f"{how}_structured")
}
"""Values of --sparse-init; GMP's own start needs no name here, where the method is called gmp."""
GROWTH_NAMES = {name: name for name in ("random", "gradient", "momentum")}
INITIALIZATION_NAMES = {"fanin": "kaiming_fan_in", "classic": "kaiming_fan_out"}
"""Values of --model-config."""
AVERAGE_NAMES = {"CAA": "cia", "CIMA": "cima"}
"""Values of --superposing_method: what the public code calls CAA is the paper's CIA."""


def _one_of(table: Mapping[str, str], flag: str) -> Callable[[str], str]:
    return lambda value: choose(table, value, f"value of {flag}")


def _cifar_model(value: str) -> str:
    """Returns our name of a CIFAR model, whatever its dashes and capitals."""
    names = {
        _letters(name.removeprefix("cifar_")): name for name in sorted(MODELS, key=lambda n: n.startswith("cifar_"))
    }
    letters = _letters(value)
    return choose(names, letters if letters in names else letters.removeprefix("cifar"), "value of --model")


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


@dataclass(frozen=True)
class Flag:
    """One flag of the public code."""

    setting: str = ""
    """The key of a recipe that it decides, if any."""
    kind: Callable[[str], Any] | None = None
    """Reads its value; None for a switch, which has none."""
    direct: bool = True
    """Whether a value, once read, is that of the setting whatever the other flags say."""
    instead: str = ""
    """What there is instead, for a flag that decides nothing here."""


FLAGS: dict[str, Flag] = {
    "--sparse": Flag("method.name"),
    "--method": Flag("method.name", str, direct=False),
    "--growth": Flag("method.grow", _one_of(GROWTH_NAMES, "--growth")),
    "--prune": Flag("method.drop", str.lower),
    "--redistribution": Flag("method.redistribution", str),
    "--sparse-init": Flag("method.distribution", _one_of(FIRST_MASK_NAMES, "--sparse-init")),
    "--init-density": Flag("method.initial_density", float),
    "--final-density": Flag("method.density", float),
    "--density": Flag("method.density", float),
    "--init-prune-epoch": Flag("method.prune_start_epoch", int),
    "--final-prune-epoch": Flag("method.prune_end_epoch", int),
    "--prune-rate": Flag("method.drop_fraction", float),
    "--decay-schedule": Flag("method.drop_fraction_schedule", str),
    "--update-frequency": Flag("method.update_interval_steps", int),
    "--re_explore": Flag("tickets.explore"),
    "--large-death-rate": Flag("tickets.exploration_fraction", float, direct=False),
    "--no_maskupdates": Flag("tickets.update_masks"),
    "--cycle": Flag("tickets.cycle_epochs", int),
    "--cycle_rate": Flag("tickets.cycle_rate", float),
    "--cyclic_epochs": Flag("tickets.cycle_rate", int, direct=False),
    "--cyc_lr": Flag("tickets.cyclic_lr"),
    "--lr_1": Flag("tickets.lr_low", float),
    "--lr_2": Flag("tickets.lr_high", float),
    "--superposing_method": Flag("superposition.method", _one_of(AVERAGE_NAMES, "--superposing_method")),
    "--CIMA_factor": Flag("superposition.cima_factor", float, direct=False),
    "--update_bn": Flag("superposition.batchnorm"),
    "--bn_update": Flag("superposition.batchnorm"),
    "--epochs": Flag("train.epochs", int),
    "--batch-size": Flag("data.batch_size", int, direct=False),
    "--lr": Flag("train.lr", float),
    "--momentum": Flag("train.momentum", float),
    "--l2": Flag("train.weight_decay", float),
    "--first_m": Flag("train.lr_milestone_epochs", int, direct=False),
    "--second_m": Flag("train.lr_milestone_epochs", int, direct=False),
    "--third_m": Flag("train.lr_milestone_epochs", int, direct=False),
    "--warmup": Flag("train.warmup_epochs", int),
    "--label-smoothing": Flag("train.label_smoothing", float),
    "--fp16": Flag("train.precision"),
    "--seed": Flag("seed", int),
    "--model": Flag("model.name", _cifar_model),
    "--arch": Flag("model.name", str),
    "--data": Flag("data.name", str.lower),
    "--valid_split": Flag("data.validation_share", float),
    "--nproc_per_node": Flag("cluster.num_workers", int),
    "--pre_train": Flag(instead="both phases always run"),
    "--cyclic_train": Flag(instead="both phases always run"),
    "--pretrain_epoch": Flag("", int, instead="pretraining gets the epochs that the cycles leave"),
    "--resume": Flag("", str, instead="the same command again goes on with an interrupted run"),
    "--multiplier": Flag("", int, instead="the epochs of training and of the schedules are multiplied by it"),
    "--indicate_method": Flag("", str, instead="a label; name= names the run"),
    "--master_port": Flag("", int, instead="Ray connects the processes"),
    "--workers": Flag("", int, instead="data.reader_threads reads ahead, where data does not fit in memory"),
    "--print-freq": Flag("", int, instead="every epoch is shown"),
    "--model-config": Flag("model.initialization", _one_of(INITIALIZATION_NAMES, "--model-config")),
}
"""The flags of the public README (arXiv 2205.15322). lr_1 is the low rate and lr_2 the high one; its help text says the
reverse."""

ALIASES = {
    "-b": "--batch-size",
    "-a": "--arch",
    "-j": "--workers",
    "-p": "--print-freq",
    "-c": "--model-config",
    "--wd": "--l2",
    "--weight-decay": "--l2",
    "--learning-rate": "--lr",
}
"""Other names of the same flags, in the public code."""


def flags_of(setting: str) -> list[str]:
    """Returns the public flags that decide a setting."""
    return [name for name, flag in FLAGS.items() if flag.setting == setting]


def parse_flags(command: str) -> tuple[dict[str, Any], str | None]:
    """Returns the flags of one of the public code's command lines with their values, and the folder that it names.

    Values are read, and translated where a word of the public code has another name here; a switch is True.

    Raises:
        ValueError: If a flag is unknown or its value is none.
    """
    try:
        words = shlex.split(command.replace("\\\n", " "))
    except ValueError as error:
        raise ValueError(f"--from-flags must be a command line; got one that cannot be split: {error}.") from None
    flags: dict[str, Any] = {}
    folders = []
    waiting = iter(words)
    for word in waiting:
        if not word.startswith("-"):
            if not _PROGRAMME.fullmatch(word):
                folders.append(word)
            continue
        is_short = not word.startswith("--")
        name, equals, text = (word[:2], word[2:], word[2:]) if is_short else word.partition("=")
        name = ALIASES.get(name, name)
        flag = FLAGS.get(name)
        if flag is None:
            raise ValueError(
                f"unknown flag {name!r} of the public code{suggestion(name, [*FLAGS, *ALIASES])} "
                "Leave it out, and look at `suptickets options` for what there is here."
            )
        if flag.kind is None:
            if equals:
                raise ValueError(f"{name} must stand alone, it is a switch; got {word!r}.")
            flags[name] = True
            continue
        text = text if equals else next(waiting, "")
        if not text or text.startswith("--"):
            raise ValueError(f"{name} must be followed by a value; got {text or 'nothing'!r}.")
        flags[name] = _value(name, flag.kind, text)
    if len(folders) > 1:
        raise ValueError(f"a command line must name one folder of data; got {', '.join(folders)}.")
    return flags, folders[0] if folders else None


_PROGRAMME = re.compile(r"python[\d.]*|(\$\d)?(\S*\.py)?|\w+=.*")
"""What stands before the flags, and the README's own $1 and $2, which a shell may have emptied."""


def _value(name: str, kind: Callable[[str], Any], text: str) -> Any:
    if kind not in (int, float):
        return kind(text)
    try:
        if not math.isfinite(number := kind(text)):
            raise ValueError
        return number
    except ValueError:
        raise ValueError(f"{name} must be a {'whole ' if kind is int else ''}number; got {text!r}.") from None
