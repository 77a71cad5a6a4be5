"""Superposes the stored tickets of finished runs again with other rules, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from suptickets_ray.config import Config, SuperpositionConfig
from suptickets_ray.lookup import suggestion
from suptickets_ray.metric import ACCURACY, Metric
from suptickets_ray.offline.stored_ticket import device_of
from suptickets_ray.recipes.load import load_config, to_dict
from suptickets_ray.recipes.recorded_run import RecordedRun, pretrained_ticket
from suptickets_ray.search.keys import exploration_key, pretraining_key
from suptickets_ray.superposition.assessment import summarize_tickets
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.tickets.run_folder import CONFIG_FILE, PRETRAINED_FILE
from suptickets_ray.tickets.schedule import canonical_order
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.tickets.ticket_store import Origin, TicketStore
from suptickets_ray.training.checkpoint import read_progress, state_digest
from suptickets_ray.training.data import Splits, load_source, make_splits
from suptickets_ray.training.data.fingerprint import check_data, fingerprint
from suptickets_ray.training.determinism import worker_determinism
from suptickets_ray.training.loop import budget_of

SWEPT_FACTORS = (0.1, 0.2, 0.5, 0.8, 0.9)
"""CIMA factors of the paper's ablation, 2205.15322, section 5."""


@dataclass(frozen=True)
class StoredRun:
    """A stored run: its recipe, pretrained network and tickets."""

    path: str
    config: Config
    pretrained: Ticket
    splits: Splits
    data: str
    """The data's fingerprint."""
    keys: list[tuple[int, int]]
    """(chain, cycle) of every stored ticket, in canonical order."""

    def ticket(self, chain: int, cycle: int) -> Ticket:
        """Reads a ticket. Raises ValueError if its file is damaged."""
        return _read_ticket(self.path, chain, cycle)


def _read_ticket(path: str, chain: int, cycle: int) -> Ticket:
    try:
        return TicketStore(RunStore(path)).get(chain, cycle)
    except ValueError as error:
        raise ValueError(f"{path}/{error}") from error


def open_run(path: str, overrides: Sequence[str] = ()) -> StoredRun:
    """Reads a run's recipe and pretrained network, and lists its tickets.

    Args:
        path: The run's folder, local or on any file system that pyarrow.fs supports.
        overrides: Settings of `superposition`, as "method=cima" or "superposition.method=cima", and data.root.

    Raises:
        ValueError: If the folder is not a run's, it has no ticket yet, a setting is wrong, or the data differ from the
            run's data.
    """
    path = path if "://" in path else str(Path(path).expanduser().absolute())
    run = RecordedRun(path)
    run.store.check(writes=False, path=CONFIG_FILE)
    for name, exists in ((CONFIG_FILE, run.is_begun), (PRETRAINED_FILE, run.is_pretrained)):
        if not exists:
            raise ValueError(f"{path} must be the folder of a run with finished pretraining; it has no {name}.")
    config = superposition_recipe(run.config, overrides)
    loaded = load_source(config.data)
    splits, data = make_splits(loaded, config.data), fingerprint(loaded)
    check_data(run.store, data)
    content = run.pretrained_state()
    try:
        progress = read_progress(content)
        pretrained = pretrained_ticket(config, content)
    except ValueError as error:
        raise ValueError(f"{path}/{PRETRAINED_FILE}: {error}") from error
    if progress.get("recipe") != int(pretraining_key(config), 16):
        raise ValueError(f"{path}/{PRETRAINED_FILE} must match the folder's {CONFIG_FILE}. Start the run again.")
    tickets = run.tickets
    stored, valid = set(tickets.list()), tickets.own(Origin(exploration_key(config), state_digest(content)))
    keys = [key for key in canonical_order(config.tickets.num_chains, budget_of(config).cycles) if key in stored]
    if not keys:
        raise ValueError(f"{path} must contain tickets; it has none yet. Start the run again to resume it.")
    for key in keys:
        if key not in valid:
            _read_ticket(path, *key)  # raises if the file is damaged
            raise ValueError(
                f"{path}/{tickets.path(*key)} must be a ticket of the folder's run, trained from its predecessor in "
                "the chain. Start the run again to retrain it."
            )
    return StoredRun(path, config, pretrained, splits, data, keys)


def superposition_recipe(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a run's recipe with other settings of superposition.

    It sets `cluster.num_merge_shards` to 1, because this process merges all tickets, and more shards would refuse a
    gate and pruning at every ticket.

    Args:
        config: The run's recipe.
        overrides: Settings of `superposition`, as "method=cima" or "superposition.method=cima", and data.root.

    Raises:
        ValueError: If a setting is wrong, or belongs to another section.
    """
    unsharded = replace(config, cluster=replace(config.cluster, num_merge_shards=1))
    return load_config(to_dict(unsharded), [_superposition_override(text) for text in overrides])


def open_runs(paths: Sequence[str], overrides: Sequence[str] = ()) -> list[StoredRun]:
    """Reads runs of one model on one data set. The rule is the first run's, with the overrides.

    Raises:
        ValueError: As `open_run`, and if a run is given twice, or if the runs differ in model, examples, masked layers
            or density.
    """
    for text in overrides:
        _superposition_override(text)  # refuses invalid overrides before any file is read
    data_overrides = [text for text in overrides if text.startswith("data.")]
    runs = [open_run(path, data_overrides if index else overrides) for index, path in enumerate(paths)]
    for index, run in enumerate(runs):
        if run.path in {other.path for other in runs[:index]}:
            raise ValueError(f"runs must be distinct; got {run.path} twice. Leave one out.")
        properties, first = _shared_properties(run), _shared_properties(runs[0])
        if differing := [name for name in properties if properties[name] != first[name]]:
            raise ValueError(
                f"Cannot superpose the runs: {run.path} has another {differing[0]} than {runs[0].path}. Leave one out."
            )
    return runs


def _shared_properties(run: StoredRun) -> dict[str, Any]:
    """Returns the properties that all runs of one superposition must share, by name."""
    model, data = run.config.model, run.config.data
    return {
        "model": (model.name, model.options),
        "data set": (data.name, data.options, run.data),
        # With other splits, the validation examples of one run are training examples of another.
        "split of the data": (data.num_train_examples, data.label_noise, data.split_seed, data.validation_share),
        "set of masked layers": sorted(run.pretrained.masks),
        "density": run.pretrained.num_active,
    }


def superpose_runs(runs: Sequence[StoredRun], config: Config | None = None) -> tuple[Merger, list[dict[str, Any]]]:
    """Merges the tickets of all runs, run after run, with the first run's pretrained network.

    Args:
        runs: Runs that `open_runs` returned.
        config: The first run's recipe with another superposition. None is the first run's recipe.

    Returns:
        The merger, and for each ticket in the order of merging the report of `Merger.merge` with the ticket's `key`.
        Chains are numbered consecutively over the runs.
    """
    first = runs[0]
    with worker_determinism(first.config):
        merger = Merger(config or first.config, first.splits, first.pretrained, device_of(first.config))
        keys = _keys(runs)
        if merger.merges_best_first:
            name = merger.metric.name
            keys = merger.best_first(keys, lambda key: merger.score(key.ticket(), "validation")[name])
        reports = [merger.merge(key.ticket(), key.chain, key.cycle, validate=False) | {"key": key} for key in keys]
    return merger, reports


def evaluate_runs(runs: Sequence[StoredRun], merger: Merger, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the scores of all networks and the assessment of the result. Reads the test set."""
    with worker_determinism(runs[0].config):
        report = merger.evaluate((merged, merged["key"].ticket()) for merged in reports)
    return {"name": " + ".join(run.config.name for run in runs), **report, **summarize_tickets(report)}


def sweep(runs: Sequence[StoredRun]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Merges the tickets with CIA, CAA, CIMA with the paper's factors, and greedy.

    Returns:
        A row for each rule: method, cima_factor (None except for CIMA), accepted (number of tickets),
        validation score, e.g. validation_accuracy, and density. The rule that is best on validation also has its test
        score, e.g. accuracy.
        And the result of `evaluate_runs` for this rule.
    """
    rules: list[tuple[str, float | None]] = [("cia", None), ("caa", None), *(("cima", f) for f in SWEPT_FACTORS)]
    rules.append(("greedy", None))
    rows: list[dict[str, Any]] = []
    best, best_merge = -1, None
    for method, factor in rules:
        rule = [f"superposition.method={method}", *([f"superposition.cima_factor={factor}"] if factor else [])]
        config = load_config(to_dict(runs[0].config), rule)
        merger, reports = superpose_runs(runs, config)
        with worker_determinism(runs[0].config):
            validation = merger.validation_scores()
        # Only the best merger so far is held: each has an accumulator and a network.
        metric, key = merger.metric, f"validation_{merger.metric.name}"
        if best_merge is None or metric.is_better(validation[metric.name], rows[best][key]):
            best, best_merge = len(rows), (merger, reports)
        rows.append(
            {
                "method": method,
                "cima_factor": factor,
                "accepted": sum(report["accepted"] for report in reports),
                key: validation[metric.name],
                "density": merger.superposed.density,
            }
        )
    assert best_merge is not None
    result = evaluate_runs(runs, *best_merge)
    rows[best][metric.name] = result["superposed"][metric.name]
    return rows, result


def sweep_table(rows: Sequence[dict[str, Any]], num_tickets: int, metric: Metric = ACCURACY) -> Table:
    """Returns the rows of `sweep` for a terminal. The row that is best on validation is bold."""
    table = Table(title=f"superposition rules on the same tickets; test {metric.title} only for the best on validation")
    for column in ("method", "cima_factor"):
        table.add_column(column)
    for column in ("accepted", "validation", "density", "test"):
        table.add_column(column, justify="right")
    for row in rows:
        factor = "" if row["cima_factor"] is None else str(row["cima_factor"])
        test, validation = metric.text(row.get(metric.name)), metric.text(row[f"validation_{metric.name}"])
        cells = (row["method"], factor, f"{row['accepted']} of {num_tickets}", validation)
        table.add_row(*cells, f"{row['density']:.4f}", test, style="bold" if test else None)
    return table


@dataclass(frozen=True)
class _Key:
    """A ticket of one of several runs. `chain` is numbered consecutively over the runs."""

    run: StoredRun
    first_chain: int
    chain_in_run: int
    cycle: int

    @property
    def chain(self) -> int:
        return self.first_chain + self.chain_in_run

    def ticket(self) -> Ticket:
        return self.run.ticket(self.chain_in_run, self.cycle)


def _keys(runs: Sequence[StoredRun]) -> list[_Key]:
    keys: list[_Key] = []
    first_chain = 0
    for run in runs:
        keys += [_Key(run, first_chain, chain, cycle) for chain, cycle in run.keys]
        first_chain += run.config.tickets.num_chains
    return keys


def _superposition_override(override: str) -> str:
    """Returns an override with its section. Raises ValueError unless it sets superposition or data.root."""
    key = override.partition("=")[0]
    if "." in key and key != "data.root" and not key.startswith("superposition."):
        raise ValueError(
            f"an override must be a setting of superposition or data.root, as nothing is trained here; got {key!r}."
        )
    if "." not in key and key not in (known := [field.name for field in fields(SuperpositionConfig)]):
        raise ValueError(f"unknown key 'superposition.{key}'{suggestion(key, known)}")
    return override if "." in key else f"superposition.{override}"
