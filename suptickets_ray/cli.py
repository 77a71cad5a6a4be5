"""The command line: parses the arguments of every command, and turns errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rich.console import Console

from suptickets_ray import __version__
from suptickets_ray.commands.exit_codes import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USAGE
from suptickets_ray.commands.listings import data_command, options_command, recipes_command
from suptickets_ray.commands.run_folders import runs_command
from suptickets_ray.commands.runs import submit_command, train_command, tune_command
from suptickets_ray.commands.stored_tickets import evaluate_command, export_command, report_command, superpose_command
from suptickets_ray.lookup import suggestion
from suptickets_ray.process_start import collect_rarely
from suptickets_ray.supervisor import EXIT_FAILED, supervise
from suptickets_ray.tickets.run_folder import REPORT_FILE, SUPERPOSED_FILE

COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "train": train_command,
    "tune": tune_command,
    "superpose": superpose_command,
    "evaluate": evaluate_command,
    "export": export_command,
    "report": report_command,
    "runs": runs_command,
    "data": data_command,
    "recipes": recipes_command,
    "options": options_command,
}
_REPEAT_SECONDS = 1.0
_last_interrupt = [-_REPEAT_SECONDS]
"""Time of the last signal that interrupted the command, in seconds of `time.monotonic`."""


def run() -> int:
    """Runs the command line of this process. `train` and `tune` run in a child process (see `supervisor`)."""
    trains = sys.argv[1:2] in (["train"], ["tune"]) and not any(text.startswith("--submit") for text in sys.argv)
    return supervise(main) if trains else main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 bad configuration, 1 the run failed, 130 interrupted."""
    collect_rarely()
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments:
        parser.print_help()
        return EXIT_DONE
    if arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        parser.error(f"unknown command {arguments[0]!r}{suggestion(arguments[0], COMMANDS)}")
    options, late = parser.parse_known_args(arguments)
    # argparse rejects positional arguments after a command's option: `superpose RUN --sweep prune_at=end`.
    if late and (not hasattr(options, "settings") or any(text.startswith("-") for text in late)):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        options.settings += late
    # A console script's path starts with the script's folder; user-defined modules are in the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    # A shell starts background commands with SIGINT ignored, but an explicit SIGINT must interrupt the run.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        if getattr(options, "dry_run", False):
            _check_dry_run(options)
        if getattr(options, "submit", None):
            return submit_command(options, console)
        if getattr(options, "no_wait", False):
            raise ValueError("--no-wait has no effect without --submit. Leave it out.")
        if getattr(options, "log_format", "text") == "json":
            from suptickets_ray.progress.log import json_logs

            with json_logs(sys.stdout):
                return COMMANDS[options.command](options, console)
        return COMMANDS[options.command](options, console)
    except KeyboardInterrupt:
        errors.print("Interrupted. Finished work is stored. Run the same command again to resume.")
        return EXIT_INTERRUPTED
    except ValueError as error:
        errors.print(str(error), markup=False, soft_wrap=True)
        return EXIT_USAGE
    except Exception as error:  # noqa: BLE001 - users see one sentence, and the traceback with --verbose
        if getattr(options, "verbose", False):
            traceback.print_exc()
        errors.print(f"The run failed: {error}", markup=False, soft_wrap=True)
        if not getattr(options, "verbose", True):
            errors.print(
                "--verbose prints the traceback. Finished work is stored; run the same command again to resume."
            )
        return EXIT_FAILED


def _check_dry_run(options: argparse.Namespace) -> None:
    others = {"--submit": options.submit, "--log-format": options.log_format != "text"}
    others["--from-flags"] = getattr(options, "from_flags", None) is not None
    for name, is_given in others.items():
        if is_given:
            raise ValueError(f"{name} has no effect with --dry-run, which starts nothing. Leave one of them out.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="suptickets", description="Sup-tickets on Ray: many sparse tickets, one network."
    )
    parser.add_argument("--version", action="version", version=f"suptickets_ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="pretrain, explore and superpose; the same command resumes an interrupted run",
        description="Pretrain a sparse network, train tickets in parallel chains, superpose them into one network.",
    )
    train.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | key=value",
        help="a recipe's file or name (default: the built-in digits recipe), and overrides, e.g. tickets.num_chains=8",
    )
    train.add_argument(
        "--from-flags",
        metavar="COMMAND",
        help="print the recipe of a quoted command line of the paper's public code, and train nothing",
    )
    train.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    _add_submission(train)
    tune = commands.add_parser(
        "tune",
        help="search cycle length, CIMA factor or other settings; trials share pretraining and tickets",
        description="Search the settings of search.space with Ray Tune. Trials share pretraining and tickets.",
    )
    tune.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | key=value",
        help="a recipe, and overrides: name=search search.num_seeds=3 'search.space={train.lr: {choice: [0.1, 0.2]}}'",
    )
    tune.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    _add_submission(tune)
    superpose = commands.add_parser(
        "superpose",
        help="superpose the stored tickets of runs again with another rule, without training",
        description="Superpose the stored tickets of one or more runs of a model again, and evaluate the result.",
    )
    superpose.add_argument(
        "settings",
        nargs="*",
        metavar="RUN_DIR | key=value",
        help="folders of runs, and settings of superposition, e.g. method=cima cima_factor=0.2",
    )
    superpose.add_argument("--sweep", action="store_true", help="compare the methods and the paper's CIMA factors")
    superpose.add_argument("--output", metavar="FILE", help="write the superposed ticket to an Arrow file")
    superpose.add_argument(
        "--checkpoint",
        nargs="+",
        metavar="FILE",
        help="superpose state_dict files of other programs instead; the first counts as the pretrained network",
    )
    superpose.add_argument("--recipe", metavar="FILE", help="with --checkpoint: the recipe of the network and the data")
    _add_evaluate(commands)
    _add_export(commands)
    report = commands.add_parser(
        "report",
        help="write an HTML page about one run, or a page that compares several runs",
        description="Write an HTML page about one run, or a page that compares several runs, from their stored files.",
    )
    report.add_argument("settings", nargs="+", metavar="RUN_DIR", help="folders of runs, or URIs such as s3://...")
    report.add_argument("--output", metavar="FILE", help=f"the HTML file (default: {REPORT_FILE} in the run's folder)")
    _add_runs(commands)
    data = commands.add_parser("data", help="convert a data set to Parquet files that a cluster can stream")
    convert = data.add_subparsers(dest="action", required=True, metavar="convert").add_parser(
        "convert",
        help="write a data set as Parquet files; the same command resumes an interrupted conversion",
        description="Write the data set of a recipe as Parquet files, which data.name=parquet reads.",
    )
    convert.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | data.key=value",
        help="a recipe and overrides, e.g. data.name=image_folder data.root=photos",
    )
    convert.add_argument("--to", required=True, metavar="PATH", help="a folder, or a URI such as s3://bucket/path")
    convert.add_argument(
        "--rows-per-file", type=int, default=4096, metavar="N", help="maximum examples per file (default: 4096)"
    )
    recipes = commands.add_parser(
        "recipes",
        help="list the shipped recipes with their questions, or copy one to edit",
        description="List the recipes that `suptickets train NAME` runs, each with the question that it answers.",
    )
    actions = recipes.add_subparsers(dest="action", metavar="copy")
    copy = actions.add_parser("copy", help="copy a recipe to a new file without a base")
    copy.add_argument("name", metavar="NAME", help="a name that `suptickets recipes` lists")
    copy.add_argument("file", metavar="FILE", nargs="?", help="the new file (default: last part of NAME with .yaml)")
    listed = commands.add_parser("options", help="list every setting, and every method, criterion, model and data set")
    listed.add_argument(
        "section", nargs="?", default="", metavar="KEY", help="list only the keys that start with KEY, e.g. tickets"
    )
    return parser


def _add_runs(commands: Any) -> None:
    runs = commands.add_parser(
        "runs",
        help="list runs and searches with their state, result and size; `runs rm NAME` removes one",
        description="List the runs and searches of a storage, or remove some. A running one is never removed.",
    )
    runs.add_argument(
        "words",
        nargs="*",
        metavar="STORAGE | rm NAME",
        help="a folder or URI (default: runs), or rm with names or folders of runs",
    )
    runs.add_argument("--yes", action="store_true", help="with rm: do not ask")


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a stored ticket: accuracy, loss, calibration error and accuracy per class",
        description="Evaluate a stored ticket on the data of its run, in the same way as the run.",
    )
    _add_ticket(evaluate, "settings of the data, e.g. data.root=/data")
    evaluate.add_argument("--split", default="test", metavar="SPLIT", help="train, validation or test (default: test)")
    evaluate.add_argument("--json", action="store_true", help="print all scores as JSON, for other programs")


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a stored ticket as safetensors, state_dict, onnx, csr or arrow",
        description="Write a stored ticket in a format that other programs read.",
    )
    _add_ticket(export, "settings of the data, for onnx only; data.name=synthetic needs no data files")
    export.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        help="safetensors, state_dict (torch), onnx, csr (torch, masked weights as CSR) or arrow (the ticket's format)",
    )
    export.add_argument("--output", metavar="FILE", help="the new file (default: TICKET's name in this folder)")


def _add_ticket(command: argparse.ArgumentParser, settings: str) -> None:
    command.add_argument(
        "ticket", metavar="TICKET", help=f"a ticket's file, e.g. runs/digits/{SUPERPOSED_FILE}, or a URI"
    )
    command.add_argument("settings", nargs="*", metavar="data.key=value", help=settings)
    command.add_argument(
        "--recipe", metavar="FILE", help="the ticket's recipe (default: the recipe of the run that contains TICKET)"
    )


def _add_submission(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, the budget and the requested resources; start nothing",
    )
    command.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json prints every event as a line of JSON, with run, phase, chain and cycle (default: text)",
    )
    command.add_argument(
        "--submit",
        metavar="ADDRESS",
        help="run as a job on the Ray cluster with this dashboard, e.g. http://127.0.0.1:8265",
    )
    command.add_argument("--no-wait", action="store_true", help="with --submit: return at once; the job keeps running")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupts the command, so that Ray is shut down on the way out.

    A repeated signal within a second is ignored: `timeout` and `ray job stop` signal the supervisor, which forwards the
    signal, and this process as well. It would interrupt the shutdown.
    """
    now = time.monotonic()
    if now - _last_interrupt[0] >= _REPEAT_SECONDS:
        _last_interrupt[0] = now
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(run())
