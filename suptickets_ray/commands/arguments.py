"""The arguments of every command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from suptickets_ray import __version__
from suptickets_ray.commands.completion import SHELLS, complete_key, complete_recipe, complete_setting
from suptickets_ray.tickets.run_folder import REPORT_FILE, SUPERPOSED_FILE


def command_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands, whose arguments have completers for the shell."""
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
    _add_settings(
        train, "a recipe's file or name (default: the built-in digits recipe), and overrides, e.g. tickets.num_chains=8"
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
    _add_settings(
        tune, "a recipe, and overrides: name=search search.num_seeds=3 'search.space={train.lr: {choice: [0.1, 0.2]}}'"
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
    _add_settings(
        convert, "a recipe and overrides, e.g. data.name=image_folder data.root=photos", "RECIPE | data.key=value"
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
    name = copy.add_argument("name", metavar="NAME", help="a name that `suptickets recipes` lists")
    _complete(name, complete_recipe)
    copy.add_argument("file", metavar="FILE", nargs="?", help="the new file (default: last part of NAME with .yaml)")
    listed = commands.add_parser("options", help="list every setting, and every method, criterion, model and data set")
    section = listed.add_argument(
        "section", nargs="?", default="", metavar="KEY", help="list only the keys that start with KEY, e.g. tickets"
    )
    _complete(section, complete_key)
    completion = commands.add_parser(
        "completion",
        help="print the script that adds completion to bash, zsh or fish",
        description='Print the script of a shell. In .bashrc or .zshrc: eval "$(suptickets completion bash)"',
    )
    completion.add_argument("shell", choices=SHELLS)
    return parser


def _add_settings(command: argparse.ArgumentParser, text: str, metavar: str = "RECIPE | key=value") -> None:
    _complete(command.add_argument("settings", nargs="*", metavar=metavar, help=text), complete_setting)


def _complete(argument: argparse.Action, completer: Callable[..., list[str]]) -> None:
    """Sets what argcomplete calls with the start of a word."""
    argument.completer = completer  # type: ignore[attr-defined]


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
    status = commands.add_parser(
        "status",
        help="show a run, and follow it while another process runs it",
        description="Show the state of a run from its folder. On a terminal, follow it until it ends or Ctrl-C.",
    )
    status.add_argument("name", metavar="NAME", help="a name in the folder runs, or a run's folder or URI")


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
