"""The command line: suptickets train | tune | superpose | evaluate | export | report | data | recipes | options."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

from rich.console import Console

from suptickets_ray.commands import COMMANDS, EXIT_INTERRUPTED, submit_job
from suptickets_ray.process_start import collect_rarely
from suptickets_ray.supervisor import EXIT_FAILED, supervise

EXIT_USAGE = 2


def run() -> int:
    """Runs the command of this process's arguments; training and searching in a child process (see `supervisor`)."""
    trains = sys.argv[1:2] in (["train"], ["tune"]) and not any(text.startswith("--submit") for text in sys.argv)
    return supervise(main) if trains else main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 bad configuration, 1 the run failed, 130 interrupted."""
    collect_rarely()
    parser = _parser()
    options, late = parser.parse_known_args(arguments)
    # argparse takes no positional arguments after an option of a command: `superpose RUN --sweep prune_at=end`.
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
            return submit_job(options, console)
        if getattr(options, "no_wait", False):
            raise ValueError("--no-wait has no effect without --submit. Leave it out.")
        if getattr(options, "log_format", "text") == "json":
            from suptickets_ray.progress.log import json_logs

            with json_logs(sys.stdout):
                return COMMANDS[options.command](options, console)
        return COMMANDS[options.command](options, console)
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
        help="a recipe's file or name (the built-in digits recipe when left out), overrides, e.g. tickets.num_chains=8",
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
        help="search cycle length, CIMA factor or anything else; pretraining and tickets are trained once for all",
        description="Search the settings of search.space with Ray Tune; trials share pretraining and tickets.",
    )
    tune.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | key=value",
        help="a recipe, overrides: name=search search.num_seeds=3 'search.space={train.lr: {choice: [0.1, 0.2]}}'",
    )
    tune.add_argument("--verbose", action="store_true", help="show Ray's own messages and tracebacks")
    _add_submission(tune)
    superpose = commands.add_parser(
        "superpose",
        help="merge the stored tickets of runs anew under another rule; nothing is trained",
        description="Merge the stored tickets of one or more runs of a model anew, and evaluate the result.",
    )
    superpose.add_argument(
        "settings",
        nargs="+",
        metavar="RUN_DIR | key=value",
        help="folders of runs, and settings of superposition such as method=cima cima_factor=0.2",
    )
    superpose.add_argument("--sweep", action="store_true", help="compare the methods and the paper's CIMA factors")
    superpose.add_argument("--output", metavar="FILE", help="keep the superposed ticket as an Arrow file")
    _add_evaluate(commands)
    _add_export(commands)
    report = commands.add_parser(
        "report",
        help="write one page that compares runs, from the files that they left",
        description="Write one HTML page on a run, or on several side by side, from the files that they left.",
    )
    report.add_argument("settings", nargs="+", metavar="RUN_DIR", help="folders of runs, or URIs such as s3://...")
    report.add_argument("--output", metavar="FILE", help="where to write the page")
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


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="what a stored ticket is worth: accuracy, loss, calibration error, every class",
        description="Evaluate a stored ticket on the data of its run, as the run itself did.",
    )
    _add_ticket(evaluate, "settings of the data, e.g. data.root=/data")
    evaluate.add_argument("--split", default="test", metavar="SPLIT", help="train, validation or test (test)")
    evaluate.add_argument("--json", action="store_true", help="print everything as JSON, for other programs")


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a stored ticket as safetensors, state_dict, onnx, csr or arrow",
        description="Write a stored ticket in a form that other programs read.",
    )
    _add_ticket(export, "for onnx: settings of the data, e.g. data.name=synthetic where they are not at hand")
    export.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        help="safetensors, state_dict (torch), onnx, csr (torch, masked weights sparse) or arrow (the ticket's own)",
    )
    export.add_argument("--output", metavar="FILE", help="the new file; TICKET's name in this folder when left out")


def _add_ticket(command: argparse.ArgumentParser, settings: str) -> None:
    command.add_argument(
        "ticket", metavar="TICKET", help="a ticket's file, e.g. runs/digits/superposed.arrow, or a URI"
    )
    command.add_argument("settings", nargs="*", metavar="data.key=value", help=settings)
    command.add_argument(
        "--recipe", metavar="FILE", help="the ticket's recipe; that of the run in whose folder it lies when left out"
    )


def _add_submission(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: every event as a line of JSON on standard output, with run, phase, chain and cycle (text)",
    )
    command.add_argument(
        "--submit",
        metavar="ADDRESS",
        help="run it as a job of the Ray cluster with this dashboard, e.g. http://127.0.0.1:8265",
    )
    command.add_argument("--no-wait", action="store_true", help="with --submit: return at once, the job goes on")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C, or a polite kill: Ray is shut down on the way out, nothing is left behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(run())
