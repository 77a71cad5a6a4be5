"""The commands that train: train and tune, here or as a job on a cluster."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.text import Text

from suptickets_ray.commands.exit_codes import EXIT_DONE, EXIT_INTERRUPTED
from suptickets_ray.commands.recipe_arguments import recipe_and_overrides
from suptickets_ray.config import Config
from suptickets_ray.tickets.run_folder import BEST_FILE, REPORT_FILE, SUPERPOSED_FILE, TENSORBOARD_FOLDER


def train_command(options: argparse.Namespace, console: Console) -> int:
    """Trains a recipe, or prints what would run with --dry-run or --from-flags."""
    if not options.verbose:
        # Deprecation warnings of libraries are for developers, not for users of the command.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    if options.from_flags is not None:
        return _print_translated(options)
    _announce(options, console)
    from suptickets_ray.recipes.load import load_config

    recipe, overrides = recipe_and_overrides(options.settings)
    if searched := [text for text in overrides if text.startswith(("search.", "search="))]:
        raise ValueError(f"{searched[0]} has no effect with train; suptickets tune reads it. Leave it out.")
    config = load_config(recipe, overrides)
    if options.dry_run:
        return _print_dry_run(config, console)

    from suptickets_ray.distributed.pipeline.run import train
    from suptickets_ray.progress.events import Event, ResultWritten
    from suptickets_ray.recipes.recorded_run import RecordedRun
    from suptickets_ray.tickets.store import child

    with _view(console, options.log_format) as view:

        def show(event: Event) -> None:
            view(event)
            if isinstance(event, ResultWritten) and options.log_format == "text":
                _print_result(console, RecordedRun(event.path).result or {})

        finished = train(config, show, verbose=options.verbose)
    if options.log_format == "json":
        return _log_end(config.name, finished.path, finished.result, "superposed")
    if finished.resumed:
        console.print("This run is already complete.")
        _print_result(console, finished.result)
    _print_path(console, "Files:", finished.path)
    if config.run.report != "none":
        _print_path(console, "Report:", child(finished.path, REPORT_FILE))
    _print_curves(console, finished.path)
    _print_path(console, "Evaluate: suptickets evaluate", child(finished.path, SUPERPOSED_FILE))
    _print_path(console, "Export: suptickets export --format onnx", child(finished.path, SUPERPOSED_FILE))
    return EXIT_DONE


def tune_command(options: argparse.Namespace, console: Console) -> int:
    """Searches settings, or prints what would run with --dry-run."""
    if not options.verbose:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    _announce(options, console)
    from suptickets_ray.recipes.load import load_config

    recipe, overrides = recipe_and_overrides(options.settings)
    if unread := [text for text in overrides if text.startswith("run.report=")]:
        raise ValueError(f"{unread[0]} has no effect with tune; suptickets train reads it. Leave it out.")
    config = load_config(recipe, overrides)
    if options.dry_run:
        return _print_dry_run(config, console, searches=True)

    from suptickets_ray.distributed.tune.tune import tune
    from suptickets_ray.report.search_page import search_table
    from suptickets_ray.tickets.store import child

    with _view(console, options.log_format) as view:
        finished = tune(config, view, verbose=options.verbose)
    if options.log_format == "json":
        return _log_end(config.name, finished.path, finished.result, "best")
    if finished.resumed:
        console.print("This search is already complete.")
    console.print(search_table(finished.result))
    best = finished.result["best"]
    console.print(f"Best, on the test set: {best['accuracy']:.2%}. Digest: {best['digest']}", soft_wrap=True)
    for warning in finished.result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=not console.is_terminal)
    _print_path(console, "Run the best: suptickets train", child(finished.path, BEST_FILE))
    _print_path(console, "Files:", finished.path)
    _print_curves(console, finished.path)
    return EXIT_DONE


def submit_command(options: argparse.Namespace, console: Console) -> int:
    """Submits a command to a cluster as a job. Returns the job's exit code, or 0 at once with --no-wait.

    Raises:
        ValueError: If the recipe or the address is invalid.
    """
    from suptickets_ray.distributed.cluster.submit import submit
    from suptickets_ray.recipes.load import load_config

    config = load_config(*recipe_and_overrides(options.settings))
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


def _announce(options: argparse.Namespace, console: Console) -> None:
    """Prints a line at once: importing torch takes seconds."""
    if options.log_format == "text" and not options.dry_run:
        console.print("Checking the recipe, the network and the data.")


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


def _print_dry_run(config: Config, console: Console, *, searches: bool = False) -> int:
    from rich.table import Table

    from suptickets_ray.offline.dry_run import describe_run, describe_search
    from suptickets_ray.recipes.load import to_yaml
    from suptickets_ray.training.data import load_data
    from suptickets_ray.training.validation_size import warnings_about

    splits = load_data(config.data)
    console.print(to_yaml(config), markup=False, soft_wrap=True, end="")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title="Nothing was started", title_justify="left")
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for title, text in [*(describe_search(config) if searches else []), *describe_run(config, splits)]:
        table.add_row(Text(title), Text(text))
    console.print(table)
    for warning in warnings_about(config, splits):
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=not console.is_terminal)
    return EXIT_DONE


def _view(console: Console, log_format: str) -> Any:
    """Returns the progress view of a run: live on a terminal, plain lines elsewhere, none with JSON logs."""
    from suptickets_ray.progress.live import PlainView, TerminalView

    if log_format == "json":
        return nullcontext(lambda event: None)  # train and tune already log every event
    if console.is_terminal and not console.is_dumb_terminal:
        return TerminalView(console)
    return PlainView(lambda line: console.print(line, soft_wrap=True))


def _print_result(console: Console, result: dict[str, Any]) -> None:
    from suptickets_ray.progress.summary_table import closing_table

    console.print(closing_table(result))
    console.print(result["assessment"]["sentence"], markup=False)
    for warning in result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=not console.is_terminal)


def _print_path(console: Console, label: str, path: str) -> None:
    """Prints a label and a path quoted for a shell."""
    console.print(f"{label} {shlex.quote(path)}", markup=False, highlight=False, soft_wrap=True)


def _print_curves(console: Console, run: str) -> None:
    # TensorBoard does not read the query of a URI; settings such as the region come from the environment.
    from suptickets_ray.tickets.store import child

    tree = child(run, TENSORBOARD_FOLDER)
    _print_path(console, "Curves: tensorboard --logdir", tree.partition("?")[0] if "://" in tree else tree)


def _log_end(name: str, path: str, result: dict[str, Any], network: str) -> int:
    """Logs the end of a run or search, with the scores of a network of the result."""
    from suptickets_ray.progress.final_events import finished_event
    from suptickets_ray.progress.log import EventLog

    EventLog(name)(finished_event(path, result, network))
    return EXIT_DONE
