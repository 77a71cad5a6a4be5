"""Every row of every table of strategies, with one line each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from suptickets_ray.sparse.criteria import DROP_SCORES, GROW_SCORES, REDISTRIBUTIONS
from suptickets_ray.sparse.first_masks import FIRST_MASKS
from suptickets_ray.sparse.methods import METHODS, Method
from suptickets_ray.sparse.schedules import FRACTIONS
from suptickets_ray.sparse.topology import SCOPES
from suptickets_ray.tickets.superposition import AVERAGES, PRUNE_TIMES
from suptickets_ray.training.data import DATASETS
from suptickets_ray.training.loop import INITIALIZATIONS
from suptickets_ray.training.models import MODELS
from suptickets_ray.training.optimization import LR_SCHEDULES

OPTIONS: dict[str, Mapping[str, Any]] = {
    "method.name": METHODS,
    "method.distribution": FIRST_MASKS,
    "method.drop": DROP_SCORES,
    "method.grow": GROW_SCORES,
    "method.redistribution": REDISTRIBUTIONS,
    "method.drop_fraction_schedule": FRACTIONS,
    "method.prune_scope": SCOPES,
    "superposition.method": AVERAGES,
    "superposition.prune": PRUNE_TIMES,
    "superposition.scope": SCOPES,
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


def option_tables() -> Group:
    """Returns all tables for a terminal."""
    parts: list[Any] = []
    for key, rows in OPTIONS.items():
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, row in rows.items():
            table.add_row(Text(name), Text(describe(row)))
        parts += [Text(key, style="bold underline"), table, Text("")]
    own = "Drop and grow scores, redistributions, models and data sets of your own are named package.module:function."
    return Group(*parts, Text(own))
