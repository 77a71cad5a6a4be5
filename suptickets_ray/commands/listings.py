"""The commands about recipes, settings and data sets: options, recipes, data convert."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from suptickets_ray.commands.exit_codes import EXIT_DONE
from suptickets_ray.commands.recipe_arguments import recipe_and_overrides


def options_command(options: argparse.Namespace, console: Console) -> int:
    """Prints all settings and strategies, or those whose keys start with the given text."""
    from suptickets_ray.recipes.options import option_tables

    console.print(option_tables(options.section))
    return EXIT_DONE


def recipes_command(options: argparse.Namespace, console: Console) -> int:
    """Lists the shipped recipes, or copies one to a new file."""
    from rich.table import Table

    from suptickets_ray.recipes.files import copy_recipe, question_of, shipped_recipes

    if options.action == "copy":
        path = copy_recipe(options.name, options.file)
        console.print(f"Copied to {path}. Run it: suptickets train {path}", markup=False, soft_wrap=True)
        return EXIT_DONE
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, path in shipped_recipes().items():
        table.add_row(Text(name), Text(question_of(path)))
    console.print(table)
    return EXIT_DONE


def data_command(options: argparse.Namespace, console: Console) -> int:
    """Converts a data set to Parquet files and shows the progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from suptickets_ray.recipes.load import load_config
    from suptickets_ray.training.data import load_source
    from suptickets_ray.training.data.convert import convert

    recipe, overrides = recipe_and_overrides(options.settings)
    reads = ("data.name=", "data.options", "data.root=", "data.download=", "data.split_seed=")
    if unread := [text for text in overrides if not text.startswith(reads)]:
        raise ValueError(f"{unread[0]} has no effect, because data convert writes the whole data set. Leave it out.")
    loaded = load_source(load_config(recipe, overrides).data)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as progress:

        def show(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(split, total=total)
            progress.update(tasks[split], completed=done)

        num_written = convert(loaded, options.to, rows_per_file=options.rows_per_file, on_progress=show)
    console.print(f"{num_written} files written.", soft_wrap=True)
    console.print(f"To train on them: data.name=parquet data.root={options.to}", markup=False, soft_wrap=True)
    return EXIT_DONE
