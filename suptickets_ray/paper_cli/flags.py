"""The public code's flags, the settings that they correspond to, and a parser of its command lines."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from suptickets_ray.lookup import choose, suggestion
from suptickets_ray.training.models import MODELS

INITIAL_MASK_NAMES = {"ERK": "erk", "GMP": "GMP", "uniform": "uniform"} | {
    name: name
    for how in ("prune", "prune_and_grow")
    for name in (f"{how}_uniform", f"{how}_global", f"{how}_structured")
}
"""Values of --sparse-init. "GMP" is a dense start, which is no distribution: the method gmp implies it."""
GROWTH_NAMES = {name: name for name in ("random", "gradient", "momentum")}
INITIALIZATION_NAMES = {"fanin": "kaiming_fan_in", "classic": "kaiming_fan_out"}
"""Values of --model-config."""
AVERAGE_NAMES = {"CAA": "cia", "CIMA": "cima"}
"""Values of --superposing_method. The paper's CIA is called CAA in the public code."""


def _one_of(table: Mapping[str, str], flag: str) -> Callable[[str], str]:
    return lambda value: choose(table, value, f"value of {flag}")


def _cifar_model(value: str) -> str:
    """Returns this package's name of a CIFAR model. Case and punctuation are ignored."""
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
    """The setting that the flag corresponds to, if any."""
    kind: Callable[[str], Any] | None = None
    """Called with the text of the flag's value; returns the value. None for a switch without a value."""
    direct: bool = True
    """Whether the flag's value is the setting's value, independent of other flags."""
    reason: str = ""
    """Why the flag is not needed here, for a flag without a setting."""


FLAGS: dict[str, Flag] = {
    "--sparse": Flag("method.name"),
    "--method": Flag("method.name", str, direct=False),
    "--growth": Flag("method.grow", _one_of(GROWTH_NAMES, "--growth")),
    "--prune": Flag("method.drop", str.lower),
    "--redistribution": Flag("method.redistribution", str),
    "--sparse-init": Flag("method.distribution", _one_of(INITIAL_MASK_NAMES, "--sparse-init")),
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
    "--pre_train": Flag(reason="pretraining and cycles always run"),
    "--cyclic_train": Flag(reason="pretraining and cycles always run"),
    "--pretrain_epoch": Flag("", int, reason="pretraining gets all epochs that the cycles do not use"),
    "--resume": Flag("", str, reason="the same command resumes an interrupted run"),
    "--multiplier": Flag("", int, reason="it multiplies the epochs of training and of the schedules"),
    "--indicate_method": Flag("", str, reason="it is only a label; name= sets the run's name"),
    "--master_port": Flag("", int, reason="Ray connects the processes"),
    "--workers": Flag("", int, reason="data.reader_threads sets the prefetch threads of data too large for memory"),
    "--print-freq": Flag("", int, reason="every epoch is printed"),
    "--model-config": Flag("model.initialization", _one_of(INITIALIZATION_NAMES, "--model-config")),
}
"""The flags of the public README (arXiv 2205.15322). lr_1 is the low and lr_2 the high learning rate; the public code's
help text states the reverse."""

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
"""Alternative names of flags in the public code."""


def flags_of(setting: str) -> list[str]:
    """Returns the public flags that correspond to a setting."""
    return [name for name, flag in FLAGS.items() if flag.setting == setting]


def parse_flags(command: str) -> tuple[dict[str, Any], str | None]:
    """Returns the flags of a command line of the public code with their values, and its folder of data, if any.

    Values are converted to this package's types and names. A switch is True.

    Raises:
        ValueError: If a flag is unknown or its value is invalid.
    """
    try:
        words = shlex.split(command.replace("\\\n", " "))
    except ValueError as error:
        raise ValueError(f"Cannot split the command line of --from-flags: {error}. Check its quotes.") from None
    flags: dict[str, Any] = {}
    folders = []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("-"):
            if not _COMMAND_WORD.fullmatch(word):
                folders.append(word)
            continue
        is_short = not word.startswith("--")
        name, equals, text = (word[:2], word[2:], word[2:]) if is_short else word.partition("=")
        name = ALIASES.get(name, name)
        flag = FLAGS.get(name)
        if flag is None:
            raise ValueError(
                f"unknown flag {name!r} of the public code{suggestion(name, [*FLAGS, *ALIASES])} "
                "Leave it out. `suptickets options` lists all settings."
            )
        if flag.kind is None:
            if equals:
                raise ValueError(f"{name} must have no value, because it is a switch; got {word!r}.")
            flags[name] = True
            continue
        text = text if equals else next(remaining, "")
        if not text or text.startswith("--"):
            raise ValueError(f"{name} must be followed by a value; got {text or 'nothing'!r}.")
        flags[name] = _value(name, flag.kind, text)
    if len(folders) > 1:
        raise ValueError(f"the command line must contain at most one folder of data; got {', '.join(folders)}.")
    return flags, folders[0] if folders else None


_COMMAND_WORD = re.compile(r"python[\d.]*|(\$\d)?(\S*\.py)?|\w+=.*")
"""Words before the flags, and the README's placeholders $1 and $2, which a shell may have replaced with nothing."""


def _value(name: str, kind: Callable[[str], Any], text: str) -> Any:
    if kind not in (int, float):
        return kind(text)
    try:
        if not math.isfinite(number := kind(text)):
            raise ValueError
        return number
    except ValueError:
        raise ValueError(f"{name} must be a {'whole ' if kind is int else ''}number; got {text!r}.") from None
