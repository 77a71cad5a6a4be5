"""The whole job beside the same work in one naive process, and beside a bare dense loop.

    python experiments/benchmarks/end_to_end.py [--size full|short] [--repeats 3] [--only one_chain,naive,...]

ResNet-32 on files in CIFAR-100's format with random pixels, RigL at density 0.1. The contestants take turns:

* `one_chain`: `suptickets train` with one chain of two cycles;
* `two_chains`: with two chains of one cycle, side by side, so that the number of tickets is equal;
* `fast`: as two_chains, in the precision that `train.precision=auto` chooses on this machine;
* `naive`: `naive_job.py`, the same work written as public research code is;
* `floor`: a bare dense loop for as many epochs, all images in memory.

Prints medians of wall and CPU seconds, ratios to `naive`, and where the time of the product's runs goes. `full` takes
about 12 minutes a turn on 2 cores, `short` 3 minutes in all. All cores are granted to every contestant.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

TARGETS = {"one_chain": 0.95, "two_chains": 0.85, "fast": 0.6}


class Size(NamedTuple):
    """How much work is done."""

    train: int
    validation: int
    test: int
    epochs: int
    cycles: int
    cycle_epochs: int
    interval: int


SIZES = {"full": Size(2048, 512, 512, 16, 2, 2, 16), "short": Size(512, 128, 128, 6, 2, 1, 4)}


class Turn(NamedTuple):
    """One turn of one contestant."""

    wall: float
    """Seconds from the command to its end."""
    cpu: float
    """CPU seconds of the process and all its children."""
    work: dict[str, Any]
    """What was done, and the seconds of its parts."""


def main() -> None:
    """Lets the contestants take turns and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--only", default="one_chain,two_chains,fast,naive,floor")
    options = parser.parse_args()
    size, names = SIZES[options.size], options.only.split(",")
    repeats = options.repeats or (3 if options.size == "full" else 1)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="e2e-") as folder:
        write_files(Path(folder), size)
        for repeat in range(repeats):
            for name in names:
                turns[name].append(take_turn(name, folder, size, repeat))
    check_work(turns, size)
    show(turns)


def write_files(folder: Path, size: Size) -> None:
    """Writes random images in the format of CIFAR-100."""
    rng, target = np.random.default_rng(0), folder / "cifar-100-python"
    target.mkdir()
    for part, count in (("train", size.train + size.validation), ("test", size.test)):
        fine = [number % 100 for number in range(count)]
        content = {
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": fine,
            "coarse_labels": [label // 5 for label in fine],
        }
        (target / part).write_bytes(pickle.dumps(content, protocol=2))
    names = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    (target / "meta").write_bytes(pickle.dumps(names, protocol=2))


def take_turn(name: str, folder: str, size: Size, repeat: int) -> Turn:
    """Runs one contestant as a process of its own, with all cores."""
    home = Path(folder, f"{name}-{repeat}")
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "120"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        command_of(name, folder, home, size), env=environment, capture_output=True, text=True, check=False
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    is_ours = name not in ("naive", "floor")
    return Turn(wall, cpu, work_of_run(home / "run", wall) if is_ours else json.loads(done.stdout))


def command_of(name: str, folder: str, home: Path, size: Size) -> list[str]:
    """Returns the command line of a contestant."""
    work = {"train": size.train, "validation": size.validation, "epochs": size.epochs, "cycles": size.cycles}
    if name in ("naive", "floor"):
        flags = [f"--{key}={value}" for key, value in work.items()]
        flags += [f"--cycle-epochs={size.cycle_epochs}", f"--interval={size.interval}"]
        flags += ["--loop=dense"] if name == "floor" else []
        return [sys.executable, str(Path(__file__).with_name("naive_job.py")), folder, str(home), *flags]
    return [str(Path(sys.executable).with_name("suptickets")), "train", *recipe(name, folder, home, size)]


def recipe(name: str, folder: str, home: Path, size: Size) -> list[str]:
    """Returns the recipe of one of the product's runs."""
    chains = 1 if name == "one_chain" else 2
    cycles = size.cycles // chains
    epochs = size.epochs - (size.cycles - cycles) * size.cycle_epochs  # equal pretraining
    total = size.train + size.validation
    return [
        f"{Path(__file__).parents[1] / 'cifar100' / 'resnet50_rigl.yaml'}",
        f"storage={home}",
        "name=run",
        "model.name=resnet32",
        f"data.root={folder}",
        f"data.validation_share={size.validation / total}",
        f"train.epochs={epochs}",
        "train.lr_milestone_epochs=null",
        "method.density=0.1",
        f"method.update_interval_steps={size.interval}",
        f"tickets.num_chains={chains}",
        f"tickets.cycle_epochs={size.cycle_epochs}",
        f"tickets.cycle_rate={cycles * size.cycle_epochs / epochs + 1e-6:.6f}",
        f"cluster.num_workers={len(os.sched_getaffinity(0))}",
        *(["train.precision=auto"] if name == "fast" else []),
    ]


def work_of_run(path: Path, wall: float) -> dict[str, Any]:
    """Returns what a run has done, and the seconds of its parts."""
    result = json.loads((path / "result.json").read_text())
    config, tickets = result["config"], result["tickets"]
    seconds = result["seconds"]
    cycles = max(ticket["cycle"] for ticket in tickets) + 1
    pretrain_epochs = config["train"]["epochs"] - cycles * config["tickets"]["cycle_epochs"]
    parts = {key: value for key, value in seconds.items() if key != "total"}
    return {
        "epochs": pretrain_epochs + len(tickets) * config["tickets"]["cycle_epochs"],
        "tickets": len(tickets),
        "density": result["superposed"]["density"],
        "ticket_density": tickets[0]["density"],
        "seconds": {**parts, "after": wall - sum(parts.values())},
    }


def check_work(turns: dict[str, list[Turn]], size: Size) -> None:
    """Raises an error unless all contestants have done the same work."""
    for name, taken in turns.items():
        for turn in taken:
            epochs, steps = turn.work["epochs"], turn.work.get("steps")
            assert epochs == size.epochs, (name, epochs)
            assert steps is None or steps == size.epochs * -(-size.train // 128), (name, steps)
            if name != "floor":
                assert turn.work["tickets"] == size.cycles, (name, turn.work)
                for key in ("density", "ticket_density"):  # the naive masks are drawn with an inexact count
                    assert abs(turn.work[key] - 0.1) < 0.01, (name, key, turn.work[key])


def show(turns: dict[str, list[Turn]]) -> None:
    """Prints medians, ratios, and the parts of every contestant."""
    console = Console(highlight=False, soft_wrap=True)
    wall = {name: statistics.median(turn.wall for turn in taken) for name, taken in turns.items()}
    table = Table("contestant", "turns", "wall s (median)", "all turns", "CPU s", "x naive", "target", "parts, s")
    for name, taken in turns.items():
        parts = {
            key: statistics.median(turn.work["seconds"][key] for turn in taken) for key in taken[0].work["seconds"]
        }
        table.add_row(
            name,
            str(len(taken)),
            f"{wall[name]:.0f}",
            " ".join(f"{turn.wall:.0f}" for turn in taken),
            f"{statistics.median(turn.cpu for turn in taken):.0f}",
            f"{wall[name] / wall['naive']:.2f}" if "naive" in wall else "",
            f"<= {TARGETS[name]}" if name in TARGETS else "",
            ", ".join(f"{key} {value:.0f}" for key, value in parts.items()),
        )
    console.print(f"{processor()}, {len(os.sched_getaffinity(0))} cores")
    console.print(table)


def processor() -> str:
    """Returns the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


if __name__ == "__main__":
    main()
