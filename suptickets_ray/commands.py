"""The commands of the command line. Each reads its options, runs, and prints the result."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from suptickets_ray.config import Config
from suptickets_ray.tickets.run_folder import BEST_FILE, REPORT_FILE, SUPERPOSED_FILE, TENSORBOARD_FOLDER

EXIT_DONE, EXIT_INTERRUPTED = 0, 130


def submit_job(options: argparse.Namespace, console: Console) -> int:
    """Submits a command to a cluster as a job. Returns the job's exit code, or 0 at once with --no-wait.

    Raises:
        ValueError: If the recipe or the address is invalid.
    """
    from suptickets_ray.distributed.cluster.submit import submit
    from suptickets_ray.recipes.load import load_config

    config = load_config(*_recipe_and_overrides(options.settings))
    started: list[str] = []
    try:
        job_id, code = submit(
            config,
            options.command,
            options.submit,
            lambda piece: console.print(piece, end="", markup=False, highlight=False, soft_wrap=True),
            wait=not options.no_wait,
            flags=[f"--log-format={options.log_format}", *(["--verbose"] if options.verbose else [])],
            on_start=started.append,
        )
    except KeyboardInterrupt:
        if not started:
            raise
        console.print(
            f"Job {started[0]} keeps running. Stop it with: ray job stop --address {options.submit} {started[0]}",
            soft_wrap=True,
        )
        return EXIT_INTERRUPTED
    if code is None:
        console.print(f"Submitted job {job_id}. Show its output: ray job logs --address {options.submit} {job_id}")
        return EXIT_DONE
    return code


def _options(options: argparse.Namespace, console: Console) -> int:
    from suptickets_ray.recipes.options import option_tables

    console.print(option_tables(options.section))
    return EXIT_DONE


def _data(options: argparse.Namespace, console: Console) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from suptickets_ray.recipes.load import load_config
    from suptickets_ray.training.data import load_source
    from suptickets_ray.training.data.convert import convert

    recipe, overrides = _recipe_and_overrides(options.settings)
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


def _recipe_and_overrides(settings: Sequence[str]) -> tuple[str | None, list[str]]:
    recipes = [text for text in settings if _is_recipe(text)]
    if len(recipes) > 1:
        raise ValueError(f"there must be at most one recipe; got {', '.join(recipes)}. Write overrides as key=value.")
    return recipes[0] if recipes else None, [text for text in settings if text not in recipes]


def _is_recipe(text: str) -> bool:
    key, mark, _ = text.partition("=")
    return not mark or text.endswith((".yaml", ".yml")) or "://" in key  # s3://bucket/best.yaml?region=us-east-1


def _recipes(options: argparse.Namespace, console: Console) -> int:
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


def _print_translated(options: argparse.Namespace) -> int:
    from suptickets_ray.paper_cli.translate import recipe_from_flags

    if options.settings:
        raise ValueError(
            f"--from-flags must have no recipe or overrides, because it trains nothing; got {options.settings[0]!r}. "
            "Save the printed recipe, and pass it to suptickets train."
        )
    translation = recipe_from_flags(options.from_flags)
    for warning in translation.warnings:
        Console(stderr=True, highlight=False).print(f"WARNING: {warning}", markup=False, soft_wrap=True)
    sys.stdout.write(translation.to_yaml())
    return EXIT_DONE


def _superpose(options: argparse.Namespace, console: Console) -> int:
    from suptickets_ray.offline.resuperpose import evaluate_runs, open_runs, superpose_runs, sweep, sweep_table
    from suptickets_ray.offline.stored_ticket import check_output
    from suptickets_ray.progress.summary_table import closing_table
    from suptickets_ray.tickets.store import RunStore, split_path

    # The query of a URI may contain "=", and so may the name of a folder.
    paths = [
        text for text in options.settings if "=" not in text or "://" in text.partition("=")[0] or Path(text).is_dir()
    ]
    overrides = [text for text in options.settings if text not in paths]
    if not paths:
        raise ValueError("superpose must be given the folder of a run, e.g. runs/digits; got settings only.")
    if options.sweep and options.output:
        raise ValueError("--output has no effect with --sweep, which only compares rules. Leave one of them out.")
    if options.output:
        check_output(options.output)
    swept = [text for text in overrides if text.removeprefix("superposition.").startswith(("method=", "cima_factor="))]
    if options.sweep and swept:
        raise ValueError(f"{swept[0]} has no effect with --sweep, which compares methods and factors. Leave it out.")
    runs = open_runs(paths, overrides)
    if options.sweep:
        rows, best = sweep(runs)
        console.print(sweep_table(rows, sum(len(run.keys) for run in runs)))
        console.print(best["assessment"]["sentence"], markup=False)
        return EXIT_DONE
    merger, reports = superpose_runs(runs)
    result = evaluate_runs(runs, merger, reports)
    console.print(closing_table(result))
    console.print(result["assessment"]["sentence"], markup=False)
    for warning in result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=True)
    if result["rejected"]:
        rejected = ", ".join(f"chain {chain} cycle {cycle}" for chain, cycle in result["rejected"])
        console.print(f"Rejected by the gate: {rejected}", soft_wrap=True)
    console.print(f"Digest: {result['superposed']['digest']}", markup=False, soft_wrap=True)
    if options.output:
        folder, name = split_path(options.output)
        RunStore(folder).write(name, merger.superposed.to_bytes())
        console.print(f"File: {options.output}", markup=False, soft_wrap=True)
    return EXIT_DONE


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    from suptickets_ray.offline.evaluate import evaluate_stored, evaluation_json, evaluation_tables

    report = evaluate_stored(options.ticket, options.split, options.recipe, options.settings)
    if options.json:
        console.print(evaluation_json(report), markup=False, soft_wrap=True)
        return EXIT_DONE
    console.print(evaluation_tables(report))
    console.print(f"Ticket: {report['ticket']}", markup=False, soft_wrap=True)
    console.print(f"Digest: {report['digest']}", markup=False, soft_wrap=True)
    return EXIT_DONE


def _export(options: argparse.Namespace, console: Console) -> int:
    from suptickets_ray.offline.export import export_stored

    exported = export_stored(options.ticket, options.format, options.output, options.recipe, options.settings)
    console.print(f"File: {exported.path} ({exported.num_bytes:,} bytes)", markup=False, soft_wrap=True)
    console.print(f"Load it: {exported.load_code}", markup=False, soft_wrap=True)
    return EXIT_DONE


def _report(options: argparse.Namespace, console: Console) -> int:
    from suptickets_ray.report.load import write_report

    written = write_report(options.settings, options.output)
    console.print(f"Report: {written}", markup=False, soft_wrap=True)
    return EXIT_DONE


def _train(options: argparse.Namespace, console: Console) -> int:
    if not options.verbose:
        # Deprecation warnings of libraries are for developers, not for users of the command.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    if options.from_flags is not None:
        return _print_translated(options)
    _announce(options, console)
    from suptickets_ray.recipes.load import load_config

    recipe, overrides = _recipe_and_overrides(options.settings)
    if searched := [text for text in overrides if text.startswith(("search.", "search="))]:
        raise ValueError(f"{searched[0]} has no effect with train; suptickets tune reads it. Leave it out.")
    config = load_config(recipe, overrides)
    if options.dry_run:
        return _print_dry_run(config, console)

    from suptickets_ray.distributed.pipeline.run import train
    from suptickets_ray.progress.summary_table import closing_table
    from suptickets_ray.tickets.store import child

    with _view(console, options.log_format) as view:
        finished = train(config, view, verbose=options.verbose)
    if options.log_format == "json":
        return _log_end(config.name, finished.path, finished.result["superposed"], finished.result["warnings"])
    if finished.resumed:
        console.print("This run is already complete.")
    console.print(closing_table(finished.result))
    console.print(finished.result["assessment"]["sentence"], markup=False)
    for warning in finished.result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=True)
    _print_path(console, "Files:", finished.path)
    _print_path(console, "Report:", child(finished.path, REPORT_FILE))
    _print_curves(console, finished.path)
    _print_path(console, "Evaluate: suptickets evaluate", child(finished.path, SUPERPOSED_FILE))
    _print_path(console, "Export: suptickets export --format onnx", child(finished.path, SUPERPOSED_FILE))
    return EXIT_DONE


def _announce(options: argparse.Namespace, console: Console) -> None:
    """Prints a line at once: importing torch takes seconds."""
    if options.log_format == "text" and not options.dry_run:
        console.print("Checking the recipe, the network and the data.")


def _print_dry_run(config: Config, console: Console, *, searches: bool = False) -> int:
    from rich.table import Table

    from suptickets_ray.offline.dry_run import describe_run, describe_search, warnings_about
    from suptickets_ray.recipes.load import to_yaml
    from suptickets_ray.training.data import load_data

    splits = load_data(config.data)
    console.print(to_yaml(config), markup=False, soft_wrap=True, end="")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title="Nothing was started", title_justify="left")
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for title, text in [*(describe_search(config) if searches else []), *describe_run(config, splits)]:
        table.add_row(Text(title), Text(text))
    console.print(table)
    for warning in warnings_about(config, splits):
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=True)
    return EXIT_DONE


def _tune(options: argparse.Namespace, console: Console) -> int:
    if not options.verbose:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    _announce(options, console)
    from suptickets_ray.recipes.load import load_config

    config = load_config(*_recipe_and_overrides(options.settings))
    if options.dry_run:
        return _print_dry_run(config, console, searches=True)

    from suptickets_ray.distributed.tune.tune import tune
    from suptickets_ray.report.search_page import search_table
    from suptickets_ray.tickets.store import child

    with _view(console, options.log_format) as view:
        finished = tune(config, view, verbose=options.verbose)
    if options.log_format == "json":
        return _log_end(config.name, finished.path, finished.result["best"], finished.result["warnings"])
    if finished.resumed:
        console.print("This search is already complete.")
    console.print(search_table(finished.result))
    best = finished.result["best"]
    console.print(f"Best, on the test set: {best['accuracy']:.2%}. Digest: {best['digest']}", soft_wrap=True)
    for warning in finished.result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=True)
    _print_path(console, "Run the best: suptickets train", child(finished.path, BEST_FILE))
    _print_path(console, "Files:", finished.path)
    _print_curves(console, finished.path)
    return EXIT_DONE


def _print_curves(console: Console, run: str) -> None:
    # TensorBoard does not read the query of a URI; settings such as the region come from the environment.
    from suptickets_ray.tickets.store import child

    tree = child(run, TENSORBOARD_FOLDER)
    _print_path(console, "Curves: tensorboard --logdir", tree.partition("?")[0] if "://" in tree else tree)


def _print_path(console: Console, label: str, path: str) -> None:
    """Prints a label and a path quoted for a shell."""
    console.print(f"{label} {shlex.quote(path)}", markup=False, highlight=False, soft_wrap=True)


def _log_end(name: str, path: str, network: dict[str, Any], warnings: list[str]) -> int:
    from suptickets_ray.progress.log import EventLog

    kept = {key: network[key] for key in ("accuracy", "loss", "digest")}
    EventLog(name)({"kind": "done", "path": path, **kept, "warnings": warnings})
    return EXIT_DONE


def _view(console: Console, log_format: str) -> Any:
    """Returns the progress view of a run: live on a terminal, plain lines elsewhere, none with JSON logs."""
    from suptickets_ray.progress.live import PlainView, TerminalView

    if log_format == "json":
        return nullcontext(lambda event: None)  # train and tune already log every event
    if console.is_terminal:
        return TerminalView(console)
    return PlainView(lambda line: console.print(line, soft_wrap=True))


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "train": _train,
    "tune": _tune,
    "superpose": _superpose,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "data": _data,
    "recipes": _recipes,
    "options": _options,
}
