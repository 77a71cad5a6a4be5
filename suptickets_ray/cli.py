"""The command line: runs a command, and turns its errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from rich.console import Console

from suptickets_ray.commands.arguments import command_parser
from suptickets_ray.commands.completion import complete, completion_command
from suptickets_ray.commands.exit_codes import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USAGE
from suptickets_ray.commands.listings import data_command, options_command, recipes_command
from suptickets_ray.commands.run_folders import runs_command, status_command
from suptickets_ray.commands.runs import submit_command, train_command, tune_command
from suptickets_ray.commands.stored_tickets import evaluate_command, export_command, report_command, superpose_command
from suptickets_ray.lookup import suggestion
from suptickets_ray.process_start import collect_rarely
from suptickets_ray.supervisor import EXIT_FAILED, supervise

COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "train": train_command,
    "tune": tune_command,
    "superpose": superpose_command,
    "evaluate": evaluate_command,
    "export": export_command,
    "report": report_command,
    "runs": runs_command,
    "status": status_command,
    "data": data_command,
    "recipes": recipes_command,
    "options": options_command,
    "completion": completion_command,
}
_REPEAT_SECONDS = 1.0
_last_interrupt = [-_REPEAT_SECONDS]
"""Time of the last signal that interrupted the command, in seconds of `time.monotonic`."""


def run() -> int:
    """Runs the command line of this process. `train` and `tune` run in a child process (see `supervisor`)."""
    if "_ARGCOMPLETE" in os.environ:
        complete(command_parser())
    trains = sys.argv[1:2] in (["train"], ["tune"]) and not any(text.startswith("--submit") for text in sys.argv)
    return supervise(main) if trains else main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 bad configuration, 1 the run failed, 130 interrupted."""
    collect_rarely()
    parser = command_parser()
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
        errors.print(str(error), markup=False, soft_wrap=not errors.is_terminal)
        return EXIT_USAGE
    except Exception as error:  # noqa: BLE001 - users see one sentence, and the traceback with --verbose
        if getattr(options, "verbose", False):
            traceback.print_exc()
        errors.print(f"The run failed: {error}", markup=False, soft_wrap=not errors.is_terminal)
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
