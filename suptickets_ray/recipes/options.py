"""Every setting with type, default, unit and the public code's flag, and every row of every table of strategies."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from suptickets_ray import config
from suptickets_ray.paper_cli.flags import flags_of
from suptickets_ray.sparse.criteria import GROW_SCORES, REDISTRIBUTIONS, SALIENCY_SCORES
from suptickets_ray.sparse.initial_masks import INITIAL_MASKS
from suptickets_ray.sparse.methods import METHODS, Method
from suptickets_ray.sparse.schedules import FRACTIONS
from suptickets_ray.sparse.topology import SCOPES
from suptickets_ray.tickets.averaging import AVERAGES, PRUNE_TIMES
from suptickets_ray.training.data import DATASETS
from suptickets_ray.training.loop import INITIALIZATIONS
from suptickets_ray.training.models import MODELS
from suptickets_ray.training.optim import LR_SCHEDULES

OPTIONS: dict[str, Mapping[str, Any]] = {
    "method.name": METHODS,
    "method.distribution": INITIAL_MASKS,
    "method.drop": SALIENCY_SCORES,
    "method.grow": GROW_SCORES,
    "method.redistribution": REDISTRIBUTIONS,
    "method.drop_fraction_schedule": FRACTIONS,
    "method.prune_scope": SCOPES,
    "superposition.method": AVERAGES,
    "superposition.prune_at": PRUNE_TIMES,
    "superposition.prune_scope": SCOPES,
    "train.lr_schedule": LR_SCHEDULES,
    "model.name": MODELS,
    "model.initialization": INITIALIZATIONS,
    "data.name": DATASETS,
}
"""The tables by the key of a recipe that chooses from them."""


def describe(row: Any) -> str:
    """Returns one line about a row: its own sentence, its source, or the first line of its docstring."""
    if isinstance(row, str):
        return row
    if isinstance(row, Method):
        return row.source
    return (inspect.getdoc(row) or "").partition("\n")[0]


@dataclass(frozen=True)
class Setting:
    """One key of a recipe, in words."""

    key: str
    kind: str
    default: str
    unit: str
    """What its number counts; empty for one without a unit, and for what is no number."""
    sentence: str
    flags: tuple[str, ...]
    """The public code's flags that decide it."""


def all_settings(section: type = config.Config, prefix: str = "") -> list[Setting]:
    """Returns every setting in the order of config.py: its dataclasses, and the sentence under each of their fields."""
    kinds, sentences = get_type_hints(section), _sentences(section)
    settings = []
    for field in dataclasses.fields(section):
        key, kind = prefix + field.name, kinds[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            settings += all_settings(kind, f"{key}.")
            continue
        words = kind_in_words(kind)
        unit = unit_of(field.name, sentences[field.name]) if "number" in words else ""
        flags = tuple(flags_of(key))
        settings.append(Setting(key, words, _default_in_words(field), unit, sentences[field.name], flags))
    return settings


def _sentences(section: type) -> dict[str, str]:
    """The string under each field of a dataclass, which only its source holds."""
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(after.value.value.split())
        for field, after in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }


_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "mapping", list: "list"}


def kind_in_words(kind: Any) -> str:
    """Returns the type of a setting, as a person writes its value; that it may be left out is the default's matter."""
    if isinstance(kind, UnionType):
        kinds = [part for part in get_args(kind) if part is not NoneType]
        return " or ".join(kind_in_words(part) for part in kinds)
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is list and parts:
        return f"list of {kind_in_words(parts[0])}s"
    return _KINDS.get(origin, "value")


_NO_DEFAULT = ("must be given", "left out")


def _default_in_words(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return json.dumps(field.default_factory())
    if field.default is dataclasses.MISSING:
        return _NO_DEFAULT[0]
    if field.default is None:
        return _NO_DEFAULT[1]
    return field.default if isinstance(field.default, str) else json.dumps(field.default)


_UNITS = {
    "parts": r"^parts\b",
    "epochs": r"(^|_)epochs?$",
    "steps": r"_steps$",
    "seconds": r"_seconds$",
    "minutes": r"_minutes$",
    "GB": r"_gb$",
    "trials": r"_trials$",
    "seeds": r"^seeds\b",
    "fraction": r"(_share|_fraction|density)$|^(share|fraction)\b|\ba fraction\b",
    "pixels": r"^pixels\b",
    "examples": r"_examples$|^examples\b|^number of training examples\b",
    "batches": r"^most batches\b",
    "threads": r"^threads\b",
    "chains": r"^chains\b",
    "ranks": r"^ddp ranks\b",
    "explorers": r"^most explorers\b",
    "processes": r"^processes\b",
    "CPUs": r"^cpus\b",
    "GPUs": r"^gpus\b",
}
"""Units, by how the setting's name ends or its sentence begins."""


def unit_of(name: str, sentence: str) -> str:
    """Returns what the number of a setting counts, from its name and sentence; empty for one without a unit."""
    for unit, pattern in _UNITS.items():
        if re.search(pattern, name) or re.search(pattern, sentence.lower()):
            return unit
    return ""


def settings_markdown() -> str:
    """Returns the table of all settings as it stands in README."""
    lines = ["| key | type | default | unit | meaning | public flag |", "|---|---|---|---|---|---|"]
    for setting in all_settings():
        default = setting.default if setting.default in _NO_DEFAULT else f"`{setting.default}`"
        flags = ", ".join(f"`{flag}`" for flag in setting.flags)
        cells = (f"`{setting.key}`", setting.kind, default, setting.unit, setting.sentence, flags)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def settings_lines() -> Group:
    """Returns all settings for a terminal: what each is, and below it what it means."""
    settings = all_settings()
    width = max(len(setting.key) for setting in settings)
    parts: list[Any] = []
    for setting in settings:
        kind = setting.kind + (f" ({setting.unit})" if setting.unit else "")
        default = setting.default if setting.default in _NO_DEFAULT else f"default {setting.default}"
        flags = f" Public flag: {', '.join(setting.flags)}." if setting.flags else ""
        parts.append(Text(f"{setting.key:<{width}}  ", style="bold").append(f"{kind}; {default}", style="not bold"))
        parts.append(Padding(Text(setting.sentence + flags), (0, 0, 0, 4), expand=False))
    return Group(*parts, Text(""))


def option_tables() -> Group:
    """Returns all settings, and below them what those that name a strategy choose from, for a terminal."""
    parts: list[Any] = [Text("All settings", style="bold underline"), settings_lines()]
    for key, rows in OPTIONS.items():
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, row in rows.items():
            table.add_row(Text(name), Text(describe(row)))
        parts += [Text(key, style="bold underline"), table, Text("")]
    own = "Drop and grow scores, redistributions, models and data sets of your own are named package.module:function."
    return Group(*parts, Text(own))
