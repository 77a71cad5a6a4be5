"""Runs every setting under every seed on Ray, and writes one Parquet file.

    python experiments/evidence/run.py [--seeds N] [--output FOLDER] [--only SETTING ...]

Jobs are independent and fill all CPUs of this machine, or of the Ray cluster that RAY_ADDRESS names. The same command
again goes on where it was interrupted: a finished job's rows lie in FOLDER/parts. Half an hour on 2 cores in all.
"""

from __future__ import annotations

import argparse
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
    sys.path.insert(0, folder)
    from evidence import rows_of

    return rows_of(name, seed, overrides)


def part(folder: Path, name: str, seed: int) -> Path:
    """Returns where a job's rows lie."""
    return folder / "parts" / f"{name}-{seed}.json"


def run(jobs: list[tuple[str, int]], folder: Path, overrides: list[str], progress: Progress) -> pa.Table:
    """Runs the jobs that are not finished; returns the rows of all, which it writes to the folder."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    task = progress.add_task("seeds", total=len(jobs))
    left = [one for one in jobs if not part(folder, *one).exists()]
    progress.update(task, completed=len(jobs) - len(left))
    waiting = {job.remote(str(HERE), *one, overrides): one for one in left}
    while waiting:
        (done, *_), _ = ray.wait(list(waiting))
        name, seed = waiting.pop(done)
        target = part(folder, name, seed)
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(ray.get(done)))
        temporary.replace(target)
        progress.advance(task)
    rows = [row for one in jobs for row in json.loads(part(folder, *one).read_text())]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, folder / f"{RESULTS}.tmp")
    (folder / f"{RESULTS}.tmp").replace(folder / RESULTS)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Runs what is left, and writes the page beside the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="most seeds of each setting (all)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results, parts and page (this one)")
    parser.add_argument("--only", nargs="+", metavar="SETTING", help="settings and controls to run (all)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of all recipes, for a trial")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(HERE))
    from evidence import all_jobs
    from page import write_page

    jobs = [one for one in all_jobs(options.seeds) if not options.only or one[0] in options.only]
    if not jobs:
        parser.error(f"--only must name settings; got {options.only}")
    started_here = not ray.is_initialized()
    if started_here:
        address = os.environ.get("RAY_ADDRESS") or "local"
        ray.init(address=address, include_dashboard=None, log_to_driver=False, logging_level="ERROR")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console()
    try:
        with Progress(*columns, console=console) as progress:
            table = run(jobs, options.output, options.overrides, progress)
    finally:
        if started_here:
            ray.shutdown()
    console.print(f"{table.num_rows} rows: {options.output / RESULTS}")
    console.print(f"Page: {write_page(options.output)}")


if __name__ == "__main__":
    main()
