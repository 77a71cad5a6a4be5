"""Lists every setting with type, default, unit and the public code's flag, and every row of the strategy tables."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from suptickets_ray.lookup import suggestion
from suptickets_ray.paper_cli.flags import flags_of
from suptickets_ray.recipes.declarations import declarations
from suptickets_ray.recipes.validation import sentences
from suptickets_ray.sparse.criteria import GROW_SCORES, REDISTRIBUTIONS, SALIENCY_SCORES
from suptickets_ray.sparse.initial_masks import INITIAL_MASKS
from suptickets_ray.sparse.methods import METHODS, Method
from suptickets_ray.sparse.schedules import FRACTIONS
from suptickets_ray.sparse.topology import SCOPES
from suptickets_ray.tickets.rules import AVERAGES, PRUNE_TIMES
from suptickets_ray.training.data import DATASETS
from suptickets_ray.training.initialization import INITIALIZATIONS
from suptickets_ray.training.models import MODELS
from suptickets_ray.training.optim import LR_SCHEDULES, OPTIMIZERS
from suptickets_ray.training.tasks import TASKS

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
    "train.optimizer": OPTIMIZERS,
    "model.name": MODELS,
    "model.initialization": INITIALIZATIONS,
    "data.name": DATASETS,
    "task.name": TASKS,
}
"""The strategy tables, by the setting that chooses a row."""


def describe(row: Any) -> str:
    """Returns one line about a row: the row itself if it is text, its source, or the first line of its docstring."""
    if isinstance(row, str):
        return row
    if isinstance(row, Method):
        return row.source
    return (inspect.getdoc(row) or "").partition("\n")[0]


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe, as text."""

    key: str
    kind: str
    default: str
    unit: str
    """Unit of a number; empty without a unit and for other types."""
    sentence: str
    flags: tuple[str, ...]
    """The public code's flags that set it."""


def all_settings() -> list[Setting]:
    """Returns every setting in the order of config.py, with the sentence under its dataclass field."""
    sentence_of = sentences()
    return [
        Setting(
            key,
            type_name(declared.kind),
            _default_text(declared.field),
            declared.unit,
            sentence_of[key],
            tuple(flags_of(key)),
        )
        for key, declared in declarations().items()
        if not dataclasses.is_dataclass(declared.kind)
    ]


_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "mapping", list: "list"}


def type_name(kind: Any) -> str:
    """Returns a setting's type in plain words, e.g. "whole number"; None in a union is ignored."""
    if get_origin(kind) in (UnionType, Union):  # Literal | None is a Union of module typing
        kinds = [part for part in get_args(kind) if part is not NoneType]
        return " or ".join(type_name(part) for part in kinds)
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return type_name(parts[0])
    if origin is Literal:
        return type_name(type(parts[0]))
    if origin is list and parts:
        return f"list of {type_name(parts[0])}s"
    return _KINDS.get(origin, "value")


_REQUIRED, _UNSET = "required", "unset"
_NO_DEFAULT = (_REQUIRED, _UNSET)


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return json.dumps(field.default_factory())
    if field.default is dataclasses.MISSING:
        return _REQUIRED
    if field.default is None:
        return _UNSET
    return field.default if isinstance(field.default, str) else json.dumps(field.default)


def settings_markdown() -> str:
    """Returns the Markdown table of all settings for the documentation."""
    lines = ["| key | type | default | unit | meaning | public flag |", "|---|---|---|---|---|---|"]
    for setting in all_settings():
        default = setting.default if setting.default in _NO_DEFAULT else f"`{setting.default}`"
        flags = ", ".join(f"`{flag}`" for flag in setting.flags)
        cells = (f"`{setting.key}`", setting.kind, default, setting.unit, setting.sentence, flags)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def settings_lines(prefix: str = "") -> Group:
    """Returns the settings whose keys start with `prefix`: key, type and default on one line, the sentence below."""
    settings = [setting for setting in all_settings() if setting.key.startswith(prefix)]
    width = max(len(setting.key) for setting in settings)
    parts: list[Any] = []
    for setting in settings:
        kind = setting.kind + (f" ({setting.unit})" if setting.unit else "")
        default = setting.default if setting.default in _NO_DEFAULT else f"default {setting.default}"
        flags = f" Public flag: {', '.join(setting.flags)}." if setting.flags else ""
        parts.append(Text(f"{setting.key:<{width}}  ", style="bold").append(f"{kind}; {default}", style="not bold"))
        parts.append(Padding(Text(setting.sentence + flags), (0, 0, 0, 4), expand=False))
    return Group(*parts, Text(""))


def option_tables(prefix: str = "") -> Group:
    """Returns settings for a terminal, followed by the strategies that a setting can choose from.

    Args:
        prefix: Start of the listed keys. All are listed by default.

    Raises:
        ValueError: If no key starts with the prefix.
    """
    keys = [setting.key for setting in all_settings()]
    if not any(key.startswith(prefix) for key in keys):
        sections = {key.partition(".")[0] for key in keys}
        raise ValueError(f"unknown key {prefix!r}{suggestion(prefix, [*sections, *keys])}")
    title = f"Settings that start with {prefix}" if prefix else "All settings"
    parts: list[Any] = [Text(title, style="bold underline"), settings_lines(prefix)]
    for key, rows in OPTIONS.items():
        if not key.startswith(prefix):
            continue
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, row in rows.items():
            table.add_row(Text(name), Text(describe(row)))
        parts += [Text(key, style="bold underline"), table, Text("")]
    hint = "User-defined scores, redistributions, averages, models and data sets are named package.module:function."
    return Group(*parts, Text(hint))
