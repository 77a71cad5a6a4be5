"""Translates a command line of the public code into a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import torch

from suptickets_ray.config import ModelConfig
from suptickets_ray.lookup import choose
from suptickets_ray.paper_cli.flags import FLAGS, flags_of, parse_flags
from suptickets_ray.recipes.files import in_order, shipped_recipes
from suptickets_ray.recipes.load import load_config, read_settings, to_dict
from suptickets_ray.recipes.resolve import WINDOW_KEYS
from suptickets_ray.recipes.yaml_text import dump_yaml
from suptickets_ray.sparse.methods import METHODS
from suptickets_ray.tickets.schedule import plan_budget
from suptickets_ray.training.evaluation import batch_norms
from suptickets_ray.training.models import build_model

METHOD_NAMES = {"GraNet": "granet", "GraNet_uniform": "granet_uniform", "GMP": "gmp", "GMP_uniform": "gmp_uniform"}
"""Values of --method except DST, whose method depends on --growth."""
DST_NAMES = {"gradient": "rigl", "random": "set", "momentum": "rigl"}
_EPOCH_FLAGS = ("--epochs", "--first_m", "--second_m", "--third_m", "--init-prune-epoch", "--final-prune-epoch")


@dataclass
class Translation:
    """A command line as a recipe."""

    settings: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    """Contradictions within the command, or between the command and the paper."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Flags without effect here, by the reason."""

    def to_yaml(self) -> str:
        """Returns the recipe as YAML, with warnings and omitted flags as comments."""
        remarks = ["What does this command of the public code give? Settings without a flag are as in the paper."]
        remarks += [f"WARNING: {text}" for text in self.warnings]
        remarks += [f"Left out: {', '.join(names)}; {reason}." for reason, names in self.left_out.items()]
        lines = [line for text in remarks for line in wrap(text, 116, break_long_words=False, break_on_hyphens=False)]
        return "".join(f"# {line}\n" for line in lines) + dump_yaml(in_order(self.settings))


def recipe_from_flags(command: str) -> Translation:
    """Returns the recipe of a command line of the public code. Settings without a flag are as in the paper.

    Args:
        command: A command line as in the public README, or only its flags.

    Raises:
        ValueError: If a flag is unknown, flags contradict each other, or the recipe is invalid here.
    """
    flags, root = parse_flags(command)
    data = "imagenet" if "--arch" in flags else _required(flags, "--data")
    if data != "imagenet":
        _required(flags, "--model")
    elif "--model" in flags:
        raise ValueError(f"--model must be left out with ImageNet; got {flags['--model']!r}. Use --arch.")
    if root is not None and data != "imagenet":
        raise ValueError(f"the command must contain only flags and their values; got {root!r} without a flag.")
    method = _method_name(flags)
    settings = _base_settings(data, method)
    flags = _with_multiplier(flags, settings)
    changes = _direct_settings(flags) | _derived_settings(flags, settings) | {"data.name": data, "data.root": root}
    for setting, value in changes.items():
        section, _, key = setting.rpartition(".")
        if section != "method" or key in _method_keys(method):
            _put(settings, section, key, value)
    has_batch_norm = _has_batch_norm(settings["model"])
    if not has_batch_norm:
        _put(settings, "superposition", "batchnorm", None)
    if not has_batch_norm or changes["superposition.batchnorm"] == "average":
        _put(settings, "superposition", "recalibration_examples", None)
    pretrain_epochs = plan_budget(
        settings["train"]["epochs"], settings["tickets"]["cycle_epochs"], settings["tickets"]["cycle_rate"]
    ).pretrain_epochs
    if "train.lr_milestone_epochs" not in changes and data != "imagenet":
        settings["train"]["lr_milestone_epochs"] = [pretrain_epochs // 2, pretrain_epochs * 3 // 4]
    model = str(settings["model"]["name"]).removeprefix("cifar_")
    settings["name"] = f"{data}-{model}-{method}".replace("_", "-")
    resolved = to_dict(load_config(settings))
    return Translation(settings, _warnings(flags, settings, pretrain_epochs), _left_out(flags, settings, resolved))


def _has_batch_norm(model: Mapping[str, Any]) -> bool:
    with torch.device("meta"):  # allocates and initializes no weights
        return bool(batch_norms(build_model(ModelConfig(**model), (3, 32, 32), 10)))


def _put(settings: dict[str, Any], section: str, key: str, value: Any) -> None:
    """Sets a setting, or removes it if the value is None."""
    part = settings.setdefault(section, {}) if section else settings
    part.pop(key, None)
    if value is not None:
        part[key] = value


def _required(flags: Mapping[str, Any], name: str) -> Any:
    if name not in flags:
        raise ValueError(f"{name} must be given; it is missing from the command.")
    return flags[name]


def _method_name(flags: Mapping[str, Any]) -> str:
    if "--sparse" not in flags:
        return "dense"
    chosen: str = _required(flags, "--method")
    name = choose(METHOD_NAMES | {"DST": ""}, chosen, "value of --method")
    return name or DST_NAMES[_required(flags, "--growth")]


def _method_keys(method: str) -> set[str]:
    """Returns the keys of the section `method` that a method reads."""
    epoch_keys = {fraction: epoch for epoch, fraction in WINDOW_KEYS.items()}
    keys = {"name", "density"} if METHODS[method].sparse else {"name"}
    return keys | {epoch_keys.get(key, key) for key in METHODS[method].defaults}


def _base_settings(data: str, method: str) -> dict[str, Any]:
    """Returns the paper's settings for a data set and method, or else those of the most similar shipped recipe."""
    family = method if method in DST_NAMES.values() else "granet"
    candidates = (f"{data}/resnet50_{family}", f"{data}/resnet50_rigl", f"cifar100/resnet50_{family}")
    shipped = shipped_recipes()
    settings = read_settings(next(name for name in candidates if name in shipped), [f"data.name={data}"])
    settings["method"] = {key: value for key, value in settings["method"].items() if key in _method_keys(method)}
    settings["method"]["name"] = method
    if not METHODS[method].sparse:
        settings["method"]["density"] = 1.0
    return settings


def _direct_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that each depend on one flag."""
    found: dict[str, Any] = {}
    for name, value in flags.items():
        flag = FLAGS[name]
        if not (flag.setting and flag.kind and flag.direct):
            continue
        if found.setdefault(flag.setting, value) != value:
            both = " and ".join(other for other in flags_of(flag.setting) if other in flags)
            raise ValueError(f"{both} must be equal; got {found[flag.setting]} and {value}. Leave one of them out.")
    return found


def _derived_settings(flags: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that depend on switches or on several flags. `base` holds all other settings."""
    method = METHODS[base["method"]["name"]]
    explores = method.can_explore and "--re_explore" in flags
    found: dict[str, Any] = {
        "tickets.explore": explores,
        "tickets.exploration_fraction": flags.get("--large-death-rate", 0.5) if explores else None,
        "tickets.update_masks": method.exchanges and "--no_maskupdates" not in flags,
        "superposition.batchnorm": "recalibrate" if {"--update_bn", "--bn_update"} & set(flags) else "average",
    }
    if "--batch-size" in flags:
        found["data.batch_size"] = flags["--batch-size"] * flags.get("--nproc_per_node", 1)
    if "--cyclic_epochs" in flags:
        epochs = flags.get("--epochs", base["train"]["epochs"])
        if epochs < 1:
            raise ValueError(f"--epochs must be at least 1; got {epochs}.")
        fraction = flags["--cyclic_epochs"] / epochs
        found["tickets.cycle_rate"] = math.ceil(fraction * 1e6) / 1e6  # rounded up, so that the last cycle fits
    milestones = [flags.get(name) for name in ("--first_m", "--second_m", "--third_m")]
    if any(epoch is not None for epoch in milestones):
        found["train.lr_milestone_epochs"] = [epoch for epoch in milestones if epoch is not None]
    if flags.get("--superposing_method") == "cima" and "--CIMA_factor" in flags:
        found["superposition.cima_factor"] = flags["--CIMA_factor"]
    if flags.get("--sparse-init") == "GMP":
        if not method.prunes:
            raise ValueError(
                "--sparse-init must be ERK or another sparse start unless --method is GMP or GraNet; got GMP, a dense "
                "start. Choose ERK."
            )
        found |= {"method.distribution": None, "method.initial_density": 1.0}
    if "--fp16" in flags:
        found |= {"train.precision": "float16", "cluster.gpus_per_worker": 1.0}  # float16 needs a GPU
    if "--cyc_lr" not in flags:
        found |= {"tickets.cyclic_lr": False, "tickets.lr_high": None}
    return found


def _with_multiplier(flags: dict[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags with the epochs of training and of the schedules multiplied by --multiplier."""
    multiplier = flags.get("--multiplier", 1)
    if multiplier < 1:
        raise ValueError(f"--multiplier must be at least 1; got {multiplier}. Leave it out, or lower --epochs.")
    if multiplier == 1:
        return flags
    flags = {"--epochs": base["train"]["epochs"], **flags}
    return flags | {name: multiplier * flags[name] for name in _EPOCH_FLAGS if name in flags}


def _warnings(flags: Mapping[str, Any], settings: Mapping[str, Any], pretrain_epochs: int) -> list[str]:
    """Returns warnings about contradictions within the command, or between the command and the paper."""
    found = []
    method, density, data = settings["method"]["name"], settings["method"]["density"], settings["data"]["name"]
    swapped, both = "", ""
    if data == "imagenet":
        swapped = " In the public README, the method flags of the two ImageNet commands (GraNet and RigL) are swapped."
        both = ", as in both ImageNet commands of the public README"
    initial = flags.get("--init-density")
    is_dst, is_granet = (str(flags.get("--method")).startswith(name) for name in ("DST", "GraNet"))
    if METHODS[method].sparse and initial is not None and (is_granet if initial == density else is_dst):
        other = "RigL" if is_granet else "GraNet"
        found.append(
            f"--method {flags['--method']} contradicts --init-density {initial:g}: with final density {density:g} this "
            f"is the start of {other}.{swapped} This recipe follows the flags. For {other}, as in the heading and the "
            f"paper, use the recipe {data}/resnet50_{other.lower()}."
        )
    if METHODS[method].can_explore and "--re_explore" not in flags:
        found.append(
            f"--re_explore is missing{both}, so cycles do not explore here. As in the paper, set "
            "tickets.explore=true tickets.exploration_fraction=0.5."
        )
    if METHODS[method].exchanges and "--no_maskupdates" not in flags:
        found.append(
            f"--no_maskupdates is missing{both}, so {method} also exchanges connections within cycles. As in the "
            "paper, set tickets.update_masks=false."
        )
    if "--cyc_lr" not in flags:
        low = settings["tickets"]["lr_low"]
        found.append(
            f"--cyc_lr is missing, so cycles keep the learning rate {low:g} here. For a rising and falling one as in "
            "the paper, set tickets.cyclic_lr=true and tickets.lr_high."
        )
    for name in ("--pre_train", "--cyclic_train"):
        if name not in flags:
            found.append(f"{name} is missing; here {FLAGS[name].reason}.")
    if flags.get("--pretrain_epoch", pretrain_epochs) != pretrain_epochs:
        found.append(
            f"--pretrain_epoch is {flags['--pretrain_epoch']}; here pretraining gets {pretrain_epochs} epochs."
        )
    return found


def _left_out(
    flags: Mapping[str, Any], settings: Mapping[str, Any], resolved: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Returns the flags without effect, by the reason. A switch also has an effect if it keeps a default."""
    found: dict[str, list[str]] = {}
    for name in flags:
        flag = FLAGS[name]
        section, _, key = flag.setting.rpartition(".")
        effective = resolved if flag.kind is None else settings
        if flag.reason or key not in (effective.get(section, {}) if section else effective):
            found.setdefault(flag.reason or "no effect with the other flags", []).append(name)
    return found
