"""Reading runs from their folders, and writing `report.html`: at the end of a run, and for `suptickets report`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from suptickets_ray.config import Config
from suptickets_ray.progress.timeline import TIMELINE_FILE
from suptickets_ray.recipes.load import config_digest, from_yaml
from suptickets_ray.report.analysis import (
    MAX_TICKETS,
    PRETRAINED,
    SUP_TICKET,
    Findings,
    Key,
    chance_overlap,
    chosen_lines,
    curve,
    evenly_chosen,
    layer_densities,
    overlap_matrix,
    sampled,
    ticket_name,
)
from suptickets_ray.report.comparison import ComparedRun, render_comparison
from suptickets_ray.report.run_page import render_report
from suptickets_ray.tickets.store import PRETRAINED_FILE, RunStore, TicketStore, child
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import read_ticket
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.fingerprint import load_recorded
from suptickets_ray.training.determinism import arithmetic_of
from suptickets_ray.training.models import build_model

REPORT_FILE = "report.html"
_RESULT_KEYS = ("superposed", "pretrained", "tickets", "mean_ticket", "best_ticket", "unpruned_mean", "ensemble")
_LEAST_SECONDS, _SHARE_OF_RUN = 5.0, 0.05
"""How long the lines between networks may take at the end of a run: a share of the run's time, but so much always."""


@dataclass(frozen=True)
class RunFolder:
    """A run's files, each read when it is asked for. Its data is not needed, so a copy on another machine will do."""

    path: str

    @cached_property
    def store(self) -> RunStore:
        """Its files."""
        return RunStore(self.path)

    @cached_property
    def recipe(self) -> str:
        """The resolved recipe as YAML."""
        return self.store.read("config.yaml").decode()

    @cached_property
    def config(self) -> Config:
        """The recipe. Raises ValueError if the file is none."""
        return from_yaml(self.recipe)

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """What `result.json` holds; None while the run is not finished."""
        if not self.store.exists("result.json"):
            return None
        content: dict[str, Any] = json.loads(self.store.read("result.json"))
        return content

    @cached_property
    def timeline(self) -> dict[str, Any] | None:
        """What `timeline.json` holds; None if there is none, {} if it is damaged or of another recipe."""
        if not self.store.exists(TIMELINE_FILE):
            return None
        try:
            content = json.loads(self.store.read(TIMELINE_FILE))
        except ValueError:
            return {}
        is_own = isinstance(content, dict) and content.get("config_digest") == config_digest(self.config)
        return content if is_own else {}

    @cached_property
    def keys(self) -> list[Key]:
        """(chain, cycle) of every ticket that is there, sorted."""
        return TicketStore(self.store).list()

    def network(self, name: str | Key) -> Ticket:
        """Returns a ticket by its key, the pretrained network, or the sup-ticket.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If its file is damaged.
        """
        if isinstance(name, tuple):
            return TicketStore(self.store).get(*name)
        if name == SUP_TICKET:
            return Ticket.from_bytes(self.store.read("superposed.arrow"))
        provenance = {"run": self.config.name, "config_digest": config_digest(self.config)}
        return read_ticket(self.store.read(PRETRAINED_FILE), provenance)

    @property
    def compared(self) -> list[str | Key]:
        """The networks whose masks are compared: pretraining, tickets evenly chosen, and the sup-ticket, if there."""
        first = [PRETRAINED] if self.store.exists(PRETRAINED_FILE) else []
        last = [SUP_TICKET] if self.store.exists("superposed.arrow") else []
        return [*first, *evenly_chosen(self.keys, MAX_TICKETS), *last]


def write_run_report(path: str, splits: Splits | None = None, result: Mapping[str, Any] | None = None) -> Findings:
    """Writes the report into a run's folder at the end of the run; the lines between networks may take little time.

    Whatever cannot be found out or drawn becomes a note in the page.

    Args:
        path: The run's folder, absolute or a URI.
        splits: The run's data, where it is at hand; it is loaded when left out.
        result: What `result.json` is going to hold, where it is not written yet; it is read when left out.

    Returns:
        What was found out about the tickets.

    Raises:
        OSError: If the storage cannot be read or written.
    """
    run = RunFolder(path)
    result = run.result if result is None else result
    total = float((result or {}).get("seconds", {}).get("total", 0.0))
    deadline = time.monotonic() + max(_LEAST_SECONDS, _SHARE_OF_RUN * total)
    found = find_out(run, splits, lambda: time.monotonic() > deadline)
    run.store.write(REPORT_FILE, _page(run, result, found).encode())
    return found


def write_report(paths: Sequence[str], output: str | None = None) -> str:
    """Writes the report of one run, or a page that compares several, and returns where it lies.

    Args:
        paths: Folders of runs, local or any that pyarrow.fs knows.
        output: The HTML file to write; when left out, `report.html` in the folder of the one run, or in the working
            folder for several.

    Raises:
        ValueError: If a folder is not that of a run, several are compared and one is not finished or named twice, or
            the output cannot lie where it should.
    """
    if not paths:
        raise ValueError("report must be given the folder of a run, e.g. runs/digits; got none.")
    if output is not None and (not Path(output).absolute().parent.is_dir() or Path(output).is_dir()):
        raise ValueError(f"--output must be a file in a folder that is there; got {output!r}. Create the folder first.")
    runs = [_opened(path) for path in paths]
    if len(runs) > 1:
        target = Path(output or REPORT_FILE).absolute()
        target.write_text(_comparison(runs), encoding="utf-8")
        return str(target)
    page = _page(runs[0], runs[0].result, find_out(runs[0], None))
    if output is None:
        runs[0].store.write(REPORT_FILE, page.encode())
        return child(runs[0].path, REPORT_FILE)
    target = Path(output).absolute()
    target.write_text(page, encoding="utf-8")
    return str(target)


def find_out(run: RunFolder, splits: Splits | None, is_over: Callable[[], bool] = lambda: False) -> Findings:
    """Returns what can be found out about a run's tickets; what cannot be is a note.

    Args:
        run: The run's files.
        splits: Its data; loaded when left out.
        is_over: Whether no more lines are to be drawn.
    """
    findings = Findings(num_tickets=len(run.keys))
    for step, notes in ((_masks, findings.difference_notes), (_lines, findings.curve_notes)):
        try:
            step(run, findings, splits, is_over)
        except Exception as error:  # noqa: BLE001 - a figure must not cost the run its page, whatever goes wrong
            notes.append(f"This could not be found out: {error}")
    return findings


def _masks(run: RunFolder, findings: Findings, splits: Splits | None, is_over: Callable[[], bool]) -> None:
    compared: list[str | Key] = []
    densities: list[dict[str, float]] = []

    def one_after_another() -> Iterator[Ticket]:
        for name in run.compared:
            try:
                network = run.network(name)
            except (OSError, ValueError) as error:
                findings.difference_notes.append(f"{_name(name)} is left out: {error}")
                continue
            compared.append(name)
            densities.append(layer_densities(network))
            yield network

    overlaps = overlap_matrix(one_after_another())
    findings.networks = [_name(name) for name in compared]
    findings.overlaps, findings.densities = overlaps, densities
    chosen = [key for key in compared if isinstance(key, tuple)]
    if len(chosen) > 1:
        findings.chance = chance_overlap(run.network(chosen[0]), run.network(chosen[-1]))


def _lines(run: RunFolder, findings: Findings, splits: Splits | None, is_over: Callable[[], bool]) -> None:
    pairs: list[tuple[str | Key, str | Key]] = list(chosen_lines(run.keys))
    if {PRETRAINED, SUP_TICKET} <= set(run.compared):
        pairs.insert(0, (PRETRAINED, SUP_TICKET))
    if not pairs:
        findings.curve_notes.append("There are no two networks yet to draw a line between.")
        return
    config = run.config
    data = sampled(splits or load_recorded(config.data, run.store), config)
    findings.num_examples = len(data.validation)
    model = build_model(config.model, data.sample_shape, data.num_classes)
    uses_gpu = config.cluster.gpus_per_worker > 0 and torch.cuda.is_available()
    model.to("cuda" if uses_gpu else "cpu")
    for first, second in pairs:
        ends = [(_name(name), run.network(name)) for name in (first, second)]
        with arithmetic_of(config):
            found = curve(model, ends[0], ends[1], config, data, is_over)
        if found is None:
            findings.curve_notes.append(
                f"{len(findings.curves)} of {len(pairs)} lines are drawn, because more would have kept the run "
                "waiting. suptickets report with the run's folder draws them all."
            )
            return
        findings.curves.append(found)


def _name(network: str | Key) -> str:
    return network if isinstance(network, str) else ticket_name(network)


def _page(run: RunFolder, result: Mapping[str, Any] | None, findings: Findings) -> str:
    return render_report(result, run.recipe, findings, run.timeline, name=run.config.name, path=run.path)


def _opened(path: str) -> RunFolder:
    path = path if "://" in path else str(Path(path).expanduser().absolute())
    run = RunFolder(path)
    if not run.store.exists("config.yaml"):
        raise ValueError(f"{path} must be the folder of a run; it has no config.yaml.")
    try:
        result = run.result
        _ = run.config
    except ValueError as error:
        raise ValueError(f"{path} must be the folder of a run: {error}") from error
    if result is not None and "trials" in result:
        raise ValueError(f"{path} must be the folder of a run; it is a search's, which has its report.html already.")
    if result is not None and (missing := [key for key in _RESULT_KEYS if key not in result]):
        raise ValueError(f"{path}/result.json must be that of a run; it has no {missing[0]}. Run it again.")
    if result is None and not run.keys and not run.store.exists(PRETRAINED_FILE):
        raise ValueError(
            f"{path} must be the folder of a run whose pretraining is finished; there is nothing to show yet."
        )
    return run


def _comparison(runs: Sequence[RunFolder]) -> str:
    compared, notes = [], []
    for index, run in enumerate(runs):
        if run.path in {other.path for other in runs[:index]}:
            raise ValueError(f"each run must be named once; {run.path} is named twice. Leave one out.")
        if run.result is None:
            raise ValueError(
                f"runs must be finished to be compared; {run.path} is not. The same command goes on with it."
            )
        findings = Findings()
        try:
            _masks(run, findings, None, lambda: False)
        except Exception as error:  # noqa: BLE001 - as in find_out
            notes.append(f"The masks of {run.path} could not be compared: {error}")
        pairs = findings.ticket_overlaps()
        compared.append(ComparedRun(run.path, run.config, run.result, sum(pairs) / len(pairs) if pairs else None))
    return render_comparison(compared, notes)
