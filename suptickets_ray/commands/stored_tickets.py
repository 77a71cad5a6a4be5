"""The commands that read finished runs: superpose, evaluate, export, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from suptickets_ray.commands.exit_codes import EXIT_DONE
from suptickets_ray.commands.recipe_arguments import warn_of_replaced

if TYPE_CHECKING:
    from suptickets_ray.tickets.ticket import Ticket


def superpose_command(options: argparse.Namespace, console: Console) -> int:
    """Superposes the stored tickets of runs again, or compares the rules with --sweep."""
    from suptickets_ray.metric import Metric
    from suptickets_ray.offline.resuperpose import evaluate_runs, open_runs, superpose_runs, sweep, sweep_table
    from suptickets_ray.offline.stored_ticket import check_output

    # The query of a URI may contain "=", and so may the name of a folder.
    paths = [
        text for text in options.settings if "=" not in text or "://" in text.partition("=")[0] or Path(text).is_dir()
    ]
    overrides = [text for text in options.settings if text not in paths]
    if options.checkpoint:
        return _superpose_checkpoints(options, paths, overrides, console)
    if options.recipe:
        raise ValueError("--recipe has no effect without --checkpoint: a run's folder has its recipe. Leave it out.")
    if not paths:
        raise ValueError("superpose must be given the folder of a run, e.g. runs/digits; got settings only.")
    if options.sweep and options.output:
        raise ValueError("--output has no effect with --sweep, which only compares rules. Leave one of them out.")
    if options.output:
        check_output(options.output)
    swept = [text for text in overrides if text.removeprefix("superposition.").startswith(("method=", "cima_factor="))]
    if options.sweep and swept:
        raise ValueError(f"{swept[0]} has no effect with --sweep, which compares methods and factors. Leave it out.")
    warn_of_replaced(overrides)
    runs = open_runs(paths, overrides)
    if options.sweep:
        rows, best = sweep(runs)
        console.print(sweep_table(rows, sum(len(run.keys) for run in runs), Metric.of_result(best)))
        console.print(best["assessment"]["sentence"], markup=False)
        return EXIT_DONE
    merger, reports = superpose_runs(runs)
    return _finish(options, merger.superposed, evaluate_runs(runs, merger, reports), console)


def _superpose_checkpoints(
    options: argparse.Namespace, paths: list[str], overrides: list[str], console: Console
) -> int:
    from suptickets_ray.offline.checkpoints import superpose_checkpoints
    from suptickets_ray.offline.stored_ticket import check_output

    if paths:
        raise ValueError(f"the folder of a run has no effect with --checkpoint; got {paths[0]!r}. Leave it out.")
    if options.sweep:
        raise ValueError("--sweep has no effect with --checkpoint. Leave one of them out.")
    if not options.recipe:
        raise ValueError("--checkpoint must be given with --recipe, which describes the network and the data.")
    if options.output:
        check_output(options.output)
    superposed, result = superpose_checkpoints(options.checkpoint, options.recipe, overrides)
    return _finish(options, superposed, result, console)


def _finish(options: argparse.Namespace, superposed: Ticket, result: dict[str, Any], console: Console) -> int:
    """Prints a result, and writes the superposed network to --output."""
    from suptickets_ray.progress.summary_table import closing_table
    from suptickets_ray.tickets.store import RunStore, split_path

    console.print(closing_table(result))
    console.print(result["assessment"]["sentence"], markup=False)
    for warning in result["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=not console.is_terminal)
    if result["rejected"]:
        rejected = ", ".join(f"chain {chain} cycle {cycle}" for chain, cycle in result["rejected"])
        console.print(f"Rejected by the gate: {rejected}", soft_wrap=True)
    console.print(f"Digest: {result['superposed']['digest']}", markup=False, soft_wrap=True)
    if options.output:
        folder, name = split_path(options.output)
        RunStore(folder).write(name, superposed.to_bytes())
        console.print(f"File: {options.output}", markup=False, soft_wrap=True)
    return EXIT_DONE


def evaluate_command(options: argparse.Namespace, console: Console) -> int:
    """Evaluates a stored ticket and prints the scores."""
    from suptickets_ray.offline.evaluate import evaluate_stored, evaluation_json, evaluation_tables

    warn_of_replaced(options.settings)
    report = evaluate_stored(options.ticket, options.split, options.recipe, options.settings)
    if options.json:
        console.print(evaluation_json(report), markup=False, soft_wrap=True)
        return EXIT_DONE
    console.print(evaluation_tables(report))
    console.print(f"Ticket: {report['ticket']}", markup=False, soft_wrap=True)
    console.print(f"Digest: {report['digest']}", markup=False, soft_wrap=True)
    return EXIT_DONE


def export_command(options: argparse.Namespace, console: Console) -> int:
    """Writes a stored ticket in another format."""
    from suptickets_ray.offline.export import export_stored

    warn_of_replaced(options.settings)
    exported = export_stored(options.ticket, options.format, options.output, options.recipe, options.settings)
    console.print(f"File: {exported.path} ({exported.num_bytes:,} bytes)", markup=False, soft_wrap=True)
    console.print(f"Load it: {exported.load_code}", markup=False, soft_wrap=True)
    return EXIT_DONE


def report_command(options: argparse.Namespace, console: Console) -> int:
    """Writes the HTML page of one run, or of several runs."""
    from suptickets_ray.report.load import write_report

    written = write_report(options.settings, options.output)
    console.print(f"Report: {written}", markup=False, soft_wrap=True)
    return EXIT_DONE
