"""Reads stored runs and writes `report.html`, at the end of a run and for `suptickets report`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.report.analysis import (
    MAX_TICKETS,
    PRETRAINED,
    SUP_TICKET,
    Findings,
    Key,
    chance_overlap,
    curve,
    evenly_spaced,
    layer_densities,
    line_pairs,
    overlap_matrix,
    sample_data,
    ticket_name,
)
from suptickets_ray.report.comparison import ComparedRun, render_comparison
from suptickets_ray.report.run_page import render_report
from suptickets_ray.tickets.run_folder import CONFIG_FILE, REPORT_FILE, RESULT_FILE
from suptickets_ray.tickets.store import child
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.fingerprint import load_recorded
from suptickets_ray.training.determinism import worker_determinism
from suptickets_ray.training.models import build_model

_RESULT_KEYS = ("superposed", "pretrained", "tickets", "mean_ticket", "best_ticket", "unpruned_mean", "ensemble")
_MIN_LINE_SECONDS, _LINE_FRACTION = 1.0, 0.02
"""Time limit of the lines between networks at the end of a run: a fraction of the run's time, but at least 1 s."""


def _network(run: RecordedRun, name: str | Key) -> Ticket:
    """Returns a ticket by its key, the pretrained network, or the sup-ticket.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If its file is damaged.
    """
    if isinstance(name, tuple):
        return run.tickets.get(*name)
    return run.superposed() if name == SUP_TICKET else run.pretrained()


def _compared(run: RecordedRun) -> list[str | Key]:
    """Returns the networks to compare, if stored: the pretrained network, evenly spaced tickets and the sup-ticket."""
    first, last = [PRETRAINED] if run.is_pretrained else [], [SUP_TICKET] if run.is_superposed else []
    return [*first, *evenly_spaced(run.tickets.list(), MAX_TICKETS), *last]


def write_run_report(path: str, splits: Splits | None = None, result: Mapping[str, Any] | None = None) -> Findings:
    """Writes the report into a run's folder at the end of the run. The lines between networks have a time limit.

    Parts that cannot be computed or drawn become notes on the page.

    Args:
        path: The run's folder, an absolute path or a URI.
        splits: The run's data. None loads it.
        result: Content of `result.json`, if it is not written yet. None reads it.

    Returns:
        The analysis of the tickets.

    Raises:
        OSError: If the storage cannot be read or written.
    """
    run = RecordedRun(path)
    result = run.result if result is None else result
    total = float((result or {}).get("seconds", {}).get("total", 0.0))
    seconds = 0.0 if run.config.run.report == "short" else max(_MIN_LINE_SECONDS, _LINE_FRACTION * total)
    deadline = time.monotonic() + seconds
    findings = analyze_run(run, splits, lambda: time.monotonic() > deadline)
    run.write_report(_page(run, result, findings))
    return findings


def write_report(paths: Sequence[str], output: str | None = None) -> str:
    """Writes the report of one run, or a page that compares several runs, and returns the path of the page.

    Args:
        paths: Folders of runs, local or on any file system that pyarrow.fs supports.
        output: The HTML file to write. None is `report.html`, in the run's folder for one run and in the working
            directory for several.

    Raises:
        ValueError: If a folder does not contain a run, a compared run is unfinished or given twice, or the output is
            not a file in an existing folder.
    """
    if not paths:
        raise ValueError("report must be given the folder of a run, e.g. runs/digits; got none.")
    if output is not None and (not Path(output).absolute().parent.is_dir() or Path(output).is_dir()):
        raise ValueError(f"--output must be a file in an existing folder; got {output!r}. Create the folder first.")
    runs = [_open_run(path) for path in paths]
    if len(runs) > 1:
        target = Path(output or REPORT_FILE).absolute()
        target.write_text(_comparison(runs), encoding="utf-8")
        return str(target)
    page = _page(runs[0], runs[0].result, analyze_run(runs[0], None))
    if output is None:
        runs[0].write_report(page)
        return child(runs[0].path, REPORT_FILE)
    target = Path(output).absolute()
    target.write_text(page, encoding="utf-8")
    return str(target)


def analyze_run(run: RecordedRun, splits: Splits | None, should_stop: Callable[[], bool] = lambda: False) -> Findings:
    """Analyzes a run's tickets. If a part fails, a note gives the reason.

    Args:
        run: The run's files.
        splits: The run's data. None loads it.
        should_stop: Called before each point of a line; returns whether to stop drawing lines.
    """
    findings = Findings(num_tickets=len(run.tickets.list()))
    for step, notes in ((_masks, findings.difference_notes), (_lines, findings.curve_notes)):
        try:
            step(run, findings, splits, should_stop)
        except Exception as error:  # noqa: BLE001 - no error of the analysis may prevent the page
            notes.append(f"This part could not be computed: {error}")
    return findings


def _masks(run: RecordedRun, findings: Findings, splits: Splits | None, should_stop: Callable[[], bool]) -> None:
    compared: list[str | Key] = []
    densities: list[dict[str, float]] = []

    def readable_networks() -> Iterator[Ticket]:
        for name in _compared(run):
            try:
                network = _network(run, name)
            except (OSError, ValueError) as error:
                findings.difference_notes.append(f"{_name(name)} is not compared: {error}")
                continue
            compared.append(name)
            densities.append(layer_densities(network))
            yield network

    overlaps = overlap_matrix(readable_networks())
    findings.networks = [_name(name) for name in compared]
    findings.overlaps, findings.densities = overlaps, densities
    tickets = [key for key in compared if isinstance(key, tuple)]
    if len(tickets) > 1:
        findings.chance = chance_overlap(_network(run, tickets[0]), _network(run, tickets[-1]))


def _lines(run: RecordedRun, findings: Findings, splits: Splits | None, should_stop: Callable[[], bool]) -> None:
    pairs: list[tuple[str | Key, str | Key]] = list(line_pairs(run.tickets.list()))
    if {PRETRAINED, SUP_TICKET} <= set(_compared(run)):
        pairs.insert(0, (PRETRAINED, SUP_TICKET))
    if not pairs:
        findings.curve_notes.append("No line is drawn, because the run has fewer than two networks yet.")
        return
    config = run.config
    data = sample_data(splits or load_recorded(config.data, run.store), config)
    findings.num_examples = len(data.validation)
    model = build_model(config.model, data.sample_shape, data.num_classes)
    uses_gpu = config.cluster.gpus_per_worker > 0 and torch.cuda.is_available()
    model.to("cuda" if uses_gpu else "cpu")
    for first, second in pairs:
        ends = [(_name(name), _network(run, name)) for name in (first, second)]
        with worker_determinism(config):
            line = curve(model, ends[0], ends[1], config, data, should_stop)
        if line is None:
            findings.curve_notes.append(
                f"{len(findings.curves)} of {len(pairs)} lines are drawn, because their time limit at the end of a run "
                "was reached. To draw all lines, run suptickets report with the run's folder."
            )
            return
        findings.curves.append(line)


def _name(network: str | Key) -> str:
    return network if isinstance(network, str) else ticket_name(network)


def _page(run: RecordedRun, result: Mapping[str, Any] | None, findings: Findings) -> str:
    return render_report(result, run.recipe, findings, run.timeline, name=run.config.name, path=run.path)


def _open_run(path: str) -> RecordedRun:
    path = path if "://" in path else str(Path(path).expanduser().absolute())
    run = RecordedRun(path)
    run.store.check(writes=False, path=CONFIG_FILE)
    if not run.is_begun:
        raise ValueError(f"{path} must be the folder of a run; it has no {CONFIG_FILE}.")
    try:
        result = run.result
        _ = run.config
    except ValueError as error:
        raise ValueError(f"{path} must be the folder of a run: {error}") from error
    if result is not None and "trials" in result:
        raise ValueError(f"{path} must be the folder of a run; it contains a search. Open the search's {REPORT_FILE}.")
    if result is not None and (missing := [key for key in _RESULT_KEYS if key not in result]):
        raise ValueError(f"{path}/{RESULT_FILE} must be the result of a run; it has no {missing[0]}. Run it again.")
    if result is None and not run.tickets.list() and not run.is_pretrained:
        raise ValueError(f"{path} must be the folder of a run with finished pretraining; it has no network yet.")
    return run


def _comparison(runs: Sequence[RecordedRun]) -> str:
    compared, notes = [], []
    for index, run in enumerate(runs):
        if run.path in {other.path for other in runs[:index]}:
            raise ValueError(f"runs must be distinct; got {run.path} twice. Leave one out.")
        if run.result is None:
            raise ValueError(
                f"runs must be finished to be compared; {run.path} is not. Run its command again to resume it."
            )
        findings = Findings()
        try:
            _masks(run, findings, None, lambda: False)
        except Exception as error:  # noqa: BLE001 - as in analyze_run
            notes.append(f"The masks of {run.path} could not be compared: {error}")
        pairs = findings.ticket_overlaps()
        compared.append(ComparedRun(run.path, run.config, run.result, sum(pairs) / len(pairs) if pairs else None))
    return render_comparison(compared, notes)
