"""Does memory grow with the number of tickets, and does merging keep up with exploring?

    python experiments/benchmarks/many_tickets.py

Runs the product on a Ray of its own: a 10 MB network with 8 and with 256 tickets, of which the peak memory of driver
and superposer is read, and a tiny network with 1,000 tickets from 4 explorers, of which the time is. Some minutes.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from suptickets_ray import load_config, train
from suptickets_ray.progress.events import Event, TicketMerged

COMMON = [
    "method.name=static",
    "model.initialization=default",
    "data.label_noise=0",
    "data.num_train_examples=50",
    "cluster.num_workers=1",
    "cluster.num_explorers=4",
    "tickets.cycle_epochs=1",
    "tickets.num_chains=4",
    "superposition.gate_tolerance=none",
]
LARGE, TINY = "model.options.widths=[1500, 1500]", "model.options.widths=[16]"
PRETRAIN_EPOCHS = 8


def run(widths: str, cycles: int) -> dict[str, Any]:
    """Runs one job in this process; returns its seconds, and the peak memory of driver and superposer in MB."""
    peaks: list[Memory] = []
    merges: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, TicketMerged):
            merges.append(time.monotonic())
            if len(merges) % 8 == 0:
                peaks.extend(memory_of("ray::Superposer"))

    epochs = PRETRAIN_EPOCHS + cycles
    budget = [f"train.epochs={epochs}", f"tickets.cycle_rate={(cycles + 0.5) / epochs}"]
    with tempfile.TemporaryDirectory() as storage:
        config = load_config(None, [*COMMON, widths, *budget, f"storage={storage}"])
        result = train(config, watch).result
    return {
        "tickets": len(result["tickets"]),
        "driver_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "superposer_peak_mb": max(memory.peak_mb for memory in peaks),
        "superposer_private_mb": max(memory.private_mb for memory in peaks),
        "seconds": result["seconds"],
    }


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process in MB."""

    peak_mb: float
    """Its peak so far, with the pages of Ray's object store that it has looked at."""
    private_mb: float
    """Its own now, without those."""


def memory_of(title: str) -> list[Memory]:
    """The memory of the processes of a title, e.g. "ray::Superposer"."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes().startswith(title.encode()):
                lines = dict(re.findall(r"(VmHWM|RssAnon):\s+(\d+)", (path / "status").read_text()))
                found.append(Memory(int(lines["VmHWM"]) / 1024, int(lines["RssAnon"]) / 1024))
        except (OSError, KeyError):  # it has just ended
            continue
    return found


def in_a_process_of_its_own(widths: str, cycles: int) -> dict[str, Any]:
    """Peak memory is a process's, so each run has its own."""
    command = [sys.executable, __file__, widths, str(cycles)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this very file
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Runs all three and prints."""
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps(run(sys.argv[1], int(sys.argv[2]))) + "\n")
        return
    console = Console(highlight=False, soft_wrap=True)
    few, many = in_a_process_of_its_own(LARGE, 2), in_a_process_of_its_own(LARGE, 64)
    for part in ("driver_peak", "superposer_peak", "superposer_private"):
        a, b = few[f"{part}_mb"], many[f"{part}_mb"]
        console.print(
            f"{part.replace('_', ', ')} memory, 10 MB network: {a:.0f} MB with {few['tickets']} tickets, "
            f"{b:.0f} MB with {many['tickets']}, ratio {b / a:.3f} (target <= 1.1)"
        )
    tiny = in_a_process_of_its_own(TINY, 250)
    console.print(
        f"{tiny['tickets']} tiny tickets from 4 explorers: explored and merged in {tiny['seconds']['explore']:.1f} s, "
        f"judged in {tiny['seconds']['superpose']:.1f} s"
    )


if __name__ == "__main__":
    main()
