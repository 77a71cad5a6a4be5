"""The command line: suptickets train | tune | superpose | data | recipes | options."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 bad configuration, 1 the run failed, 130 interrupted."""
    parser = _parser()
    options, late = parser.parse_known_args(arguments)
    # argparse takes no positional arguments after an option of a command: `superpose RUN --sweep prune=last`.
    if late and (not hasattr(options, "settings") or any(text.startswith("-") for text in late)):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        options.settings += late
    # A console script's path holds its own folder; the user's modules lie where the command is given.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    # Also where a shell started this in the background with SIGINT ignored: who sends it, means it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        if getattr(options, "submit", None):
            return _submit(options, console)
        if getattr(options, "no_wait", False):
            raise ValueError("--no-wait has no effect without --submit. Leave it out.")
        return _COMMANDS[options.command](options, console)
    except KeyboardInterrupt:
        errors.print("Interrupted. What is finished is kept; the same command goes on from there.")
        return EXIT_INTERRUPTED
    except ValueError as error:
        errors.print(str(error), markup=False, soft_wrap=True)
        return EXIT_USAGE
    except Exception as error:  # noqa: BLE001 - whatever it is, a person gets a sentence, and a developer the rest
        if getattr(options, "verbose", False):
            traceback.print_exc()
        errors.print(f"The run failed: {error}", markup=False, soft_wrap=True)
        if not getattr(options, "verbose", True):
            errors.print("--verbose shows where. The same command goes on from what is finished.")
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="suptickets", description="Sup-tickets on Ray: many sparse tickets, one network."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="pretrain, explore, superpose; the same command again goes on with an interrupted run",
        description="Pretrain a sparse network, make tickets in parallel chains, superpose them into one network.",
    )
    train.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | key=value",
        help="a recipe's file or name (the built-in digits recipe when left out), overrides such as tickets.chains=8",
    )
    train.add_argument(
        "--from-flags",
        metavar="COMMAND",
        help="print the recipe of a command line of the paper's public code, in quotes, and run nothing",
    )
    train.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    _add_submission(train)
    tune = commands.add_parser(
        "tune",
        help="search cycle length, CIMA factor or anything else; phase one and tickets are trained once for all",
        description="Search the settings of search.space with Ray Tune; trials share phase one and tickets.",
    )
    tune.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | key=value",
        help="a recipe and overrides, e.g. name=search search.seeds=3 'search.space={train.lr: {choice: [0.1, 0.2]}}'",
    )
    tune.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    _add_submission(tune)
    superpose = commands.add_parser(
        "superpose",
        help="fold the stored tickets of runs anew under another rule; nothing is trained",
        description="Fold the stored tickets of one or more runs of a model anew, and evaluate the result.",
    )
    superpose.add_argument(
        "settings",
        nargs="+",
        metavar="RUN_DIR | key=value",
        help="folders of runs, and settings of superposition such as method=cima cima_factor=0.2",
    )
    superpose.add_argument("--sweep", action="store_true", help="compare the methods and the paper's CIMA factors")
    superpose.add_argument("--output", metavar="FILE", help="keep the superposed ticket as an Arrow file")
    data = commands.add_parser("data", help="convert a data set to Parquet files that a cluster can stream")
    convert = data.add_subparsers(dest="action", required=True, metavar="convert").add_parser(
        "convert",
        help="write a data set as Parquet files; the same command again goes on with an interrupted one",
        description="Write the data set of a recipe as Parquet files, which data.name=parquet reads.",
    )
    convert.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | data.key=value",
        help="a recipe and overrides, e.g. data.name=image_folder data.root=photos",
    )
    convert.add_argument("--to", required=True, metavar="PATH", help="a folder, or a URI such as s3://bucket/path")
    convert.add_argument("--rows-per-file", type=int, default=4096, metavar="N", help="most examples of a file (4096)")
    recipes = commands.add_parser(
        "recipes",
        help="list the recipes that ship with the package, each with its question; copy one to edit",
        description="List the recipes that `suptickets train NAME` runs, each with the question that it asks.",
    )
    actions = recipes.add_subparsers(dest="action", metavar="copy")
    copy = actions.add_parser("copy", help="copy a recipe into a file of your own, which stands alone")
    copy.add_argument("name", metavar="NAME", help="a name that `suptickets recipes` lists")
    copy.add_argument("file", metavar="FILE", nargs="?", help="the new file; NAME's last part with .yaml when left out")
    commands.add_parser("options", help="list every setting, and every method, criterion, model and data set")
    return parser


def _add_submission(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--submit",
        metavar="ADDRESS",
        help="run it as a job of the Ray cluster with this dashboard, e.g. http://127.0.0.1:8265",
    )
    command.add_argument("--no-wait", action="store_true", help="with --submit: return at once, the job goes on")


def _submit(options: argparse.Namespace, console: Console) -> int:
    from suptickets_ray.config_io import load_config
    from suptickets_ray.distributed.submission import submit

    config = load_config(*_recipe_and_overrides(options.settings))
    job_id, code = submit(
        config,
        options.command,
        options.submit,
        lambda piece: console.print(piece, end="", markup=False, highlight=False, soft_wrap=True),
        wait=not options.no_wait,
    )
    if code is None:
        console.print(f"Job {job_id} is on its way. Its output: ray job logs --address {options.submit} {job_id}")
        return EXIT_DONE
    return code


def _options(options: argparse.Namespace, console: Console) -> int:
    from suptickets_ray.reporting.options import option_tables

    console.print(option_tables())
    return EXIT_DONE


def _data(options: argparse.Namespace, console: Console) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from suptickets_ray.config_io import load_config
    from suptickets_ray.training.data import load_source
    from suptickets_ray.training.data.convert import convert

    recipe, overrides = _recipe_and_overrides(options.settings)
    reads = ("data.name=", "data.options", "data.root=", "data.download=", "data.split_seed=")
    if unread := [text for text in overrides if not text.startswith(reads)]:
        raise ValueError(f"{unread[0]} has no effect: data convert writes the whole data set. Leave it out.")
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
    console.print(f"Train on it: data.name=parquet data.root={options.to}", markup=False, soft_wrap=True)
    return EXIT_DONE


def _recipe_and_overrides(settings: Sequence[str]) -> tuple[str | None, list[str]]:
    recipes = [text for text in settings if "=" not in text or text.endswith((".yaml", ".yml"))]
    if len(recipes) > 1:
        raise ValueError(
            f"there must be at most one recipe; got {', '.join(recipes)}. Overrides are written key=value."
        )
    return recipes[0] if recipes else None, [text for text in settings if text not in recipes]


def _recipes(options: argparse.Namespace, console: Console) -> int:
    from rich.table import Table

    from suptickets_ray.recipes import copy_recipe, question_of, shipped_recipes

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


def _print_translated(options: argparse.Namespace) -> int:
    from suptickets_ray.reporting.from_flags import recipe_from_flags

    if options.settings:
        raise ValueError(
            f"--from-flags must stand alone, it runs nothing; got {options.settings[0]!r} beside it. "
            "Save what it prints, and give that to suptickets train."
        )
    translation = recipe_from_flags(options.from_flags)
    for warning in translation.warnings:
        Console(stderr=True, highlight=False).print(f"WARNING: {warning}", markup=False, soft_wrap=True)
    sys.stdout.write(translation.to_yaml())
    return EXIT_DONE


def _superpose(options: argparse.Namespace, console: Console) -> int:
    from suptickets_ray.reporting.superpose import fold_runs, judge_runs, open_runs, sweep, sweep_table
    from suptickets_ray.reporting.table import closing_table

    paths = [text for text in options.settings if "=" not in text or "://" in text or Path(text).is_dir()]
    overrides = [text for text in options.settings if text not in paths]
    if not paths:
        raise ValueError("superpose must be given the folder of a run, e.g. runs/digits; got settings only.")
    if options.sweep and options.output:
        raise ValueError("--output has no effect with --sweep, which compares rules. Leave one of them out.")
    if options.output and not Path(options.output).absolute().parent.is_dir():
        raise ValueError(f"--output must lie in a folder that is there; got {options.output!r}. Create it first.")
    swept = [text for text in overrides if text.removeprefix("superposition.").startswith(("method=", "cima_factor="))]
    if options.sweep and swept:
        raise ValueError(f"{swept[0]} has no effect with --sweep, which compares methods and factors. Leave it out.")
    runs = open_runs(paths, overrides)
    if options.sweep:
        console.print(sweep_table(sweep(runs), sum(len(run.keys) for run in runs)))
        return EXIT_DONE
    superposing, reports = fold_runs(runs)
    result = judge_runs(runs, superposing, reports)
    console.print(closing_table(result))
    for warning in result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=True)
    if result["rejected"]:
        left_out = ", ".join(f"chain {chain} cycle {cycle}" for chain, cycle in result["rejected"])
        console.print(f"Left out by the gate: {left_out}", soft_wrap=True)
    console.print(f"Digest: {result['superposed']['digest']}", markup=False, soft_wrap=True)
    if options.output:
        superposing.superposed.save(options.output)
        console.print(f"File: {options.output}", markup=False, soft_wrap=True)
    return EXIT_DONE


def _train(options: argparse.Namespace, console: Console) -> int:
    if not options.verbose:
        # Libraries of the driver warn about themselves; a person who watches a run can do nothing about it.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    if options.from_flags is not None:
        return _print_translated(options)
    from suptickets_ray.config_io import load_config

    config = load_config(*_recipe_and_overrides(options.settings))

    from suptickets_ray.distributed.run import train
    from suptickets_ray.reporting.table import closing_table

    with _view(console) as view:
        finished = train(config, view, verbose=options.verbose)
    if finished.resumed:
        console.print("This run is done already.")
    console.print(closing_table(finished.result))
    for warning in finished.result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=True)
    console.print(f"Files: {finished.path}", markup=False, soft_wrap=True)
    console.print(f"Curves: tensorboard --logdir {finished.path}/tensorboard", markup=False, soft_wrap=True)
    return EXIT_DONE


def _tune(options: argparse.Namespace, console: Console) -> int:
    if not options.verbose:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    from suptickets_ray.config_io import load_config

    config = load_config(*_recipe_and_overrides(options.settings))

    from suptickets_ray.distributed.tuning import tune
    from suptickets_ray.reporting.search import search_table

    with _view(console) as view:
        finished = tune(config, view, verbose=options.verbose)
    if finished.resumed:
        console.print("This search is done already.")
    console.print(search_table(finished.result))
    best = finished.result["best"]
    console.print(f"Best, on the test set: {best['accuracy']:.2%}. Digest: {best['digest']}", soft_wrap=True)
    for warning in finished.result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=True)
    console.print(f"Run the best: suptickets train {finished.path}/best.yaml", markup=False, soft_wrap=True)
    console.print(f"Files: {finished.path}", markup=False, soft_wrap=True)
    console.print(f"Curves: tensorboard --logdir {finished.path}/tensorboard", markup=False, soft_wrap=True)
    return EXIT_DONE


def _view(console: Console) -> Any:
    """What a person sees of a job under way."""
    from suptickets_ray.reporting.live import PlainView, TerminalView

    if console.is_terminal:
        return TerminalView(console)
    return PlainView(lambda line: console.print(line, soft_wrap=True))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C, or a polite kill: Ray is shut down on the way out, nothing is left behind."""
    raise KeyboardInterrupt


_COMMANDS = {
    "train": _train,
    "tune": _tune,
    "superpose": _superpose,
    "data": _data,
    "recipes": _recipes,
    "options": _options,
}


if __name__ == "__main__":
    sys.exit(main())
