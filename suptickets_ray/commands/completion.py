"""Completion of the command line in bash, zsh and fish: commands, recipes, settings and their values."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, get_args

from rich.console import Console

from suptickets_ray.commands.exit_codes import EXIT_DONE

SHELLS = ("bash", "zsh", "fish")
TABLES = {
    "method.name": "sparse/methods.py:METHODS",
    "task.name": "training/tasks.py:TASKS",
    "method.distribution": "sparse/initial_masks.py:INITIAL_MASKS",
    "method.drop": "sparse/criteria.py:SALIENCY_SCORES",
    "method.grow": "sparse/criteria.py:GROW_SCORES",
    "method.redistribution": "sparse/criteria.py:REDISTRIBUTIONS",
    "method.drop_fraction_schedule": "sparse/schedules.py:FRACTIONS",
    "method.prune_scope": "sparse/topology.py:SCOPES",
    "superposition.method": "tickets/rules.py:AVERAGES",
    "superposition.prune_at": "tickets/rules.py:PRUNE_TIMES",
    "superposition.prune_scope": "sparse/topology.py:SCOPES",
    "train.lr_schedule": "training/optim.py:LR_SCHEDULES",
    "train.optimizer": "training/optim.py:OPTIMIZERS",
    "model.name": "training/models/__init__.py:MODELS",
    "model.initialization": "training/initialization.py:INITIALIZATIONS",
    "data.name": "training/data/__init__.py:DATASETS",
}
"""Where each strategy table is written. Their modules import torch, which takes longer than a completion may."""


def completion_command(options: argparse.Namespace, console: Console) -> int:
    """Prints the script that adds completion to a shell."""
    import argcomplete

    sys.stdout.write(argcomplete.shellcode(["suptickets"], shell=options.shell))
    return EXIT_DONE


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers a request of the shell's completion, and ends the process. Other processes return at once."""
    import argcomplete

    argcomplete.autocomplete(parser)


def complete_setting(prefix: str, **_: Any) -> list[str]:
    """Returns recipes and `key=` for the start of a word, and `key=value` once the word has a "="."""
    from suptickets_ray.recipes.files import shipped_recipes

    key, equals, _value = prefix.partition("=")
    if equals:
        return [f"{key}={value}" for value in values_of(key)]
    keys = [f"{name}=" for name in setting_keys()]
    return [*shipped_recipes(), *keys, *_recipe_files(prefix)]


def complete_key(prefix: str, **_: Any) -> list[str]:
    """Returns the keys of all settings."""
    return setting_keys()


def complete_recipe(prefix: str, **_: Any) -> list[str]:
    """Returns the shipped recipes."""
    from suptickets_ray.recipes.files import shipped_recipes

    return list(shipped_recipes())


def setting_keys() -> list[str]:
    """Returns the dotted keys of all settings, without their sections."""
    import dataclasses

    from suptickets_ray.recipes.declarations import declarations

    return [key for key, declared in declarations().items() if not dataclasses.is_dataclass(declared.kind)]


def values_of(key: str) -> Sequence[str]:
    """Returns the values that a setting chooses from; empty for numbers, text and unknown keys."""
    from suptickets_ray.recipes.declarations import choices, declarations

    if key in TABLES:
        return _rows(*TABLES[key].split(":"))
    declared = declarations().get(key)
    if declared is None:
        return ()
    return (
        ("true", "false")
        if bool in (declared.kind, *get_args(declared.kind))
        else [str(value) for value in choices(declared.kind)]
    )


def _rows(file: str, table: str) -> list[str]:
    """Returns the keys of a table as they are written in its module, without importing it."""
    tree = ast.parse(files("suptickets_ray").joinpath(file).read_text(encoding="utf-8"))
    for node in tree.body:
        is_table = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table
        if is_table and isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict):
            return [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    raise AssertionError(f"{file} has no table {table}")


def _recipe_files(prefix: str) -> list[str]:
    from argcomplete.completers import FilesCompleter

    return list(FilesCompleter(("yaml", "yml"))(prefix))
