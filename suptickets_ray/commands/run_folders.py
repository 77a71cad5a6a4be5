"""The commands about the folders of runs: list them, follow one, and remove some."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from suptickets_ray.commands.exit_codes import EXIT_DONE
from suptickets_ray.config import Config
from suptickets_ray.progress.words import size_text, time_text

if TYPE_CHECKING:
    from suptickets_ray.offline.run_folders import RunFolder

_FOLLOW_SECONDS = 2.0
"""Time between two reads of a folder that is followed. A run writes its timeline every 10 seconds."""


def runs_command(options: argparse.Namespace, console: Console) -> int:
    """Lists the runs and searches of a storage, or removes some with `rm`."""
    from suptickets_ray.offline.run_folders import list_run_folders

    if options.words[:1] == ["rm"]:
        return _remove(options.words[1:], console, is_confirmed=options.yes)
    if options.yes:
        raise ValueError("--yes has no effect without rm. Leave it out.")
    if len(options.words) > 1:
        raise ValueError(f"runs must be given one storage; got {' '.join(options.words)}. Remove a run: runs rm NAME.")
    storage = options.words[0] if options.words else Config.storage
    folders = list_run_folders(storage)
    if not folders:
        console.print(f"No runs in {storage}. The first one: suptickets train", markup=False, soft_wrap=True)
        return EXIT_DONE
    console.print(runs_table(folders, [state_of(folder) for folder in folders]))
    return EXIT_DONE


def status_command(options: argparse.Namespace, console: Console) -> int:
    """Prints the row of a run, and follows it while another process runs it. On a terminal only."""
    from suptickets_ray.offline.run_folders import read_run_folder, run_folder

    path = run_folder(options.name, Config.storage)
    folder = read_run_folder(path)
    state = state_of(folder)
    if not state.startswith("running"):
        console.print(runs_table([folder], [state]))
        return EXIT_DONE
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as live, suppress(KeyboardInterrupt):
        while state.startswith("running"):
            live.update(_status_view(folder, state), refresh=True)
            if not console.is_terminal:
                break
            time.sleep(_FOLLOW_SECONDS)
            folder = read_run_folder(path)
            state = state_of(folder)
    console.print(_status_view(folder, state))
    return EXIT_DONE


def _status_view(folder: RunFolder, state: str) -> Group:
    from suptickets_ray.offline.job_status import stored_state
    from suptickets_ray.progress.job_view import JobView

    is_running = state.startswith("running")
    view = [JobView(stored_state(folder), time.time())] if is_running and not folder.is_search else []
    return Group(runs_table([folder], [state]), *view)


def state_of(folder: RunFolder) -> str:
    """Returns "complete", "running on HOST, PHASE" or "interrupted, PHASE"."""
    from suptickets_ray.distributed.cluster.lock_holder import running_holder

    holder = running_holder(folder.path, heartbeat_age=folder.heartbeat_age)
    if holder is not None:
        return ", ".join(filter(None, [f"running on {holder.get('host', 'another host')}", folder.phase]))
    return "complete" if folder.is_complete else f"interrupted, {folder.phase}"


def runs_table(folders: Sequence[RunFolder], states: Sequence[str]) -> Table:
    """Returns the table of runs: one row each, with "" where a number is not known."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in ("name", "state"):
        table.add_column(title, overflow="fold")
    for title in ("test", "density", "tickets", "h:mm:ss", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for folder, state in zip(folders, states, strict=True):
        table.add_row(
            Text(folder.name),
            Text(state),
            "" if folder.accuracy is None else f"{folder.accuracy:.2%}",
            "" if folder.density is None else f"{folder.density:g}",
            _tickets(folder),
            "" if folder.seconds is None else time_text(folder.seconds),
            size_text(folder.size),
        )
    return table


def _tickets(folder: RunFolder) -> str:
    if folder.is_search:
        return f"{folder.tickets} trial" + "s" * (folder.tickets != 1)
    return f"{folder.tickets}/{'?' if folder.num_tickets is None else folder.num_tickets}"


def _remove(names: Sequence[str], console: Console, *, is_confirmed: bool) -> int:
    """Removes runs after a confirmation. A running one is refused before anything is removed."""
    from suptickets_ray.distributed.cluster.run_lock import only_process
    from suptickets_ray.offline.run_folders import read_run_folder, run_folder
    from suptickets_ray.tickets.store import RunStore

    if not names:
        raise ValueError("runs rm must be given the name or folder of a run; got none. List them: suptickets runs")
    folders = [read_run_folder(run_folder(name, Config.storage)) for name in names]
    for folder in folders:
        if (state := state_of(folder)).startswith("running"):
            raise ValueError(f"Cannot remove {folder.path}: it is {state}. Interrupt it first.")
    console.print(runs_table(folders, [state_of(folder) for folder in folders]))
    if not is_confirmed and not sys.stdin.isatty():
        raise ValueError(f"Cannot ask before {shlex.join(names)} is removed: the input is no terminal. Add --yes.")
    if not is_confirmed and console.input("Remove with all tickets? [y/N] ").strip().lower() not in ("y", "yes"):
        console.print("Nothing was removed.")
        return EXIT_DONE
    for folder in folders:
        with only_process(folder.path, lambda text: console.print(text, markup=False, soft_wrap=True)):
            RunStore(folder.path).remove_folder(".")
        console.print(f"Removed {folder.path}", markup=False, soft_wrap=True)
    return EXIT_DONE
