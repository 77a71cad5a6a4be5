"""Runs every setting under every seed on Ray, and writes one Parquet file.

    python experiments/evidence/run.py [--seeds N] [--only SETTING,...] [--output FOLDER] [key=value ...]

Jobs are independent and fill all CPUs of this machine, or of the Ray cluster that RAY_ADDRESS names. The same command
again goes on where it was interrupted: a finished job's rows lie in FOLDER/parts, and count as long as its recipe stays
the same. Without --seeds, --only and overrides it runs everything, one to two hours on 2 cores, and writes this
folder's results again; a part of it must be written to another folder. Needs `pip install 'suptickets-ray[mnist1d]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

HERE = Path(__file__).parent
SCHEMA = pa.schema(
    [
        ("setting", pa.string()),
        ("variant", pa.string()),
        ("chains", pa.int64()),
        ("seed", pa.int64()),
        ("validation_accuracy", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("seconds", pa.float64()),
        ("digest", pa.string()),
        ("versions", pa.string()),
    ]
)
RESULTS = "results.parquet"


@ray.remote(num_cpus=1, max_retries=2)
def job(folder: str, name: str, seed: int, overrides: list[str]) -> list[dict[str, Any]]:
    """One setting under one seed, in a process of its own."""
    sys.path.insert(0, str(Path(folder).resolve()))
    from evidence import rows_of

    return rows_of(name, seed, overrides)


def parts_of(jobs: list[tuple[str, int]], folder: Path, overrides: list[str]) -> dict[tuple[str, int], Path]:
    """Returns where every job's rows lie: in a file of their own for whatever they depend on."""
    from evidence import digest_of

    return {one: folder / "parts" / f"{one[0]}-{one[1]}-{digest_of(*one, overrides)}.json" for one in jobs}


def run(jobs: list[tuple[str, int]], folder: Path, overrides: list[str], progress: Progress, shipped: str) -> pa.Table:
    """Runs the jobs that are not finished; returns the rows of all, which it writes to the folder.

    Args:
        jobs: Settings and seeds.
        folder: Where parts and results go.
        overrides: Of all recipes.
        progress: Shows how far it is.
        shipped: This folder, where the jobs run.
    """
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    parts = parts_of(jobs, folder, overrides)
    task = progress.add_task("seeds", total=len(jobs))
    left = [one for one in jobs if not parts[one].exists()]
    progress.update(task, completed=len(jobs) - len(left))
    waiting = {job.remote(shipped, *one, overrides): one for one in left}
    while waiting:
        (done, *_), _ = ray.wait(list(waiting))
        target = parts[waiting.pop(done)]
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(ray.get(done)))
        temporary.replace(target)
        progress.advance(task)
    rows = [row for one in jobs for row in json.loads(parts[one].read_text())]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, folder / f"{RESULTS}.tmp")
    (folder / f"{RESULTS}.tmp").replace(folder / RESULTS)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Runs what is left, and writes the page beside the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="most seeds of each setting (all)")
    parser.add_argument("--output", type=Path, help="folder of results, parts and page (this one, for a whole run)")
    parser.add_argument("--only", metavar="SETTING,...", help="settings and controls to run (all)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of all recipes, for a trial")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(HERE))
    from evidence import CONTROLS, SETTINGS, all_jobs
    from page import write_page

    known = [*SETTINGS, *CONTROLS]
    only = options.only.split(",") if options.only else known
    if unknown := [name for name in only if name not in known]:
        parser.error(f"--only must name settings ({', '.join(known)}); got {', '.join(unknown)}")
    if options.output is None and (options.seeds or options.only or options.overrides):
        parser.error("--output must name a folder for a part of the evidence: here it would replace the whole")
    if importlib.util.find_spec("mnist1d") is None and any(not name.startswith(("r1", "conv")) for name in only):
        parser.error(
            "R2 and R3 need the mnist1d package: pip install 'suptickets-ray[mnist1d]', or leave them out with --only"
        )
    folder = options.output or HERE
    jobs = [one for one in all_jobs(options.seeds) if one[0] in only]
    started_here = not ray.is_initialized()
    shipped = str(HERE)
    if started_here:
        address = os.environ.get("RAY_ADDRESS")
        # Machines of a cluster get the recipes, those that evidence's build on among them.
        ships = {"working_dir": str(HERE.parent), "excludes": ["evidence/parts"]} if address else None
        ray.init(
            address=address or "local",
            include_dashboard=None,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env=ships,
        )
        shipped = HERE.name if address else shipped
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console()
    try:
        with Progress(*columns, console=console) as progress:
            table = run(jobs, folder, options.overrides, progress, shipped)
    finally:
        if started_here:
            ray.shutdown()
    console.print(f"{table.num_rows} rows: {folder / RESULTS}")
    console.print(f"Page: {write_page(folder)}")


if __name__ == "__main__":
    main()
