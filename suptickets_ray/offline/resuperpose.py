"""Merging the stored tickets of finished runs anew, under other rules, without training anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from suptickets_ray.config import Config, SuperpositionConfig
from suptickets_ray.lookup import suggestion
from suptickets_ray.offline.stored_ticket import device_of
from suptickets_ray.recipes.load import config_digest, from_yaml, load_config, to_dict
from suptickets_ray.search.keys import exploration_key, pretraining_key
from suptickets_ray.superposition.assessment import summarize_tickets
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.tickets.schedule import canonical_order
from suptickets_ray.tickets.store import PRETRAINED_FILE, Origin, RunStore, TicketStore
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import read_progress, read_ticket, state_digest
from suptickets_ray.training.data import Splits, load_source, make_splits
from suptickets_ray.training.data.fingerprint import check_data, fingerprint
from suptickets_ray.training.determinism import arithmetic_of
from suptickets_ray.training.loop import budget_of

SWEPT_FACTORS = (0.1, 0.2, 0.5, 0.8, 0.9)
"""CIMA factors of the paper's ablation, 2205.15322, section 5."""


@dataclass(frozen=True)
class StoredRun:
    """What a run left: its recipe, the pretrained network, and tickets."""

    path: str
    config: Config
    pretrained: Ticket
    splits: Splits
    data: str
    """The data's fingerprint."""
    keys: list[tuple[int, int]]
    """(chain, cycle) of every ticket that is there, in canonical order."""

    def ticket(self, chain: int, cycle: int) -> Ticket:
        """Reads a ticket. Raises ValueError if its file is damaged."""
        return _read_ticket(self.path, chain, cycle)


def _read_ticket(path: str, chain: int, cycle: int) -> Ticket:
    try:
        return TicketStore(RunStore(path)).get(chain, cycle)
    except ValueError as error:
        raise ValueError(f"{path}/{error}") from error


def open_run(path: str, overrides: Sequence[str] = ()) -> StoredRun:
    """Reads a run's recipe and pretraining, and finds its tickets.

    Args:
        path: The run's folder, local or any that pyarrow.fs knows.
        overrides: Settings of `superposition`, as "method=cima" or "superposition.method=cima", and data.root.

    Raises:
        ValueError: If there is no run, it has no ticket yet, a setting is wrong, or the data are not the run's.
    """
    path = path if "://" in path else str(Path(path).expanduser().absolute())
    store = RunStore(path)
    for name in ("config.yaml", PRETRAINED_FILE):
        if not store.exists(name):
            raise ValueError(f"{path} must be the folder of a run whose pretraining is finished; it has no {name}.")
    config = superposition_recipe(from_yaml(store.read("config.yaml").decode()), overrides)
    loaded = load_source(config.data)
    splits, data = make_splits(loaded, config.data), fingerprint(loaded)
    check_data(store, data)
    content = store.read(PRETRAINED_FILE)
    try:
        progress = read_progress(content)
        pretrained = read_ticket(content, {"run": config.name, "config_digest": config_digest(config)})
    except ValueError as error:
        raise ValueError(f"{path}/{PRETRAINED_FILE}: {error}") from error
    if progress.get("recipe") != int(pretraining_key(config), 16):
        raise ValueError(f"{path}/{PRETRAINED_FILE} must be that of the run in its folder. Start the run again.")
    tickets = TicketStore(store)
    stored, own = set(tickets.list()), tickets.own(Origin(exploration_key(config), state_digest(content)))
    keys = [key for key in canonical_order(config.tickets.num_chains, budget_of(config).cycles) if key in stored]
    if not keys:
        raise ValueError(f"{path} must hold tickets; it has none yet. Start the run again; it goes on.")
    for key in keys:
        if key not in own:
            _read_ticket(path, *key)  # says what is damaged
            raise ValueError(
                f"{path}/{tickets.path(*key)} must be a ticket of the run in its folder, made from the one before it. "
                "Start the run again; it makes it."
            )
    return StoredRun(path, config, pretrained, splits, data, keys)


def superposition_recipe(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a run's recipe under another superposition.

    All is merged in this process; the run's `cluster.num_merge_shards` would refuse gates and pruning at every ticket.

    Args:
        config: The run's own.
        overrides: Settings of `superposition`, as "method=cima" or "superposition.method=cima", and data.root.

    Raises:
        ValueError: If a setting is wrong, or another one.
    """
    alone = replace(config, cluster=replace(config.cluster, num_merge_shards=1))
    return load_config(to_dict(alone), [_of_superposition(text) for text in overrides])


def open_runs(paths: Sequence[str], overrides: Sequence[str] = ()) -> list[StoredRun]:
    """Reads runs of one model on one data set; the rule is the first one's, under the overrides.

    Raises:
        ValueError: As `open_run`, and if a run is named twice, or the runs differ in model, examples, masked layers or
            density.
    """
    for text in overrides:
        _of_superposition(text)  # refuses what is none, before anything is read
    of_all = [text for text in overrides if text.startswith("data.")]
    runs = [open_run(path, of_all if index else overrides) for index, path in enumerate(paths)]
    for index, run in enumerate(runs):
        if run.path in {other.path for other in runs[:index]}:
            raise ValueError(f"each run must be named once; {run.path} is named twice. Leave one out.")
        own, first = _what_must_agree(run), _what_must_agree(runs[0])
        if differing := [what for what in own if own[what] != first[what]]:
            raise ValueError(
                f"runs must agree to be superposed; {run.path} has another {differing[0]} than {runs[0].path}."
            )
    return runs


def _what_must_agree(run: StoredRun) -> dict[str, Any]:
    model, data = run.config.model, run.config.data
    return {
        "model": (model.name, model.options),
        "data set": (data.name, data.options, run.data),
        # What validates one would otherwise have trained the other.
        "cut of the data": (data.num_train_examples, data.label_noise, data.split_seed, data.validation_share),
        "set of masked layers": sorted(run.pretrained.masks),
        "density": run.pretrained.num_active,
    }


def superpose_runs(runs: Sequence[StoredRun], config: Config | None = None) -> tuple[Merger, list[dict[str, Any]]]:
    """Merges the tickets of all runs, run by run, onto the first one's pretrained network.

    Args:
        runs: What `open_runs` gave.
        config: The first run's recipe with another superposition; its own when left out.

    Returns:
        The merge, and for each ticket in the order of merging what `Merger.merge` reports, and the ticket's `key`;
        chains are counted on over the runs.
    """
    first = runs[0]
    with arithmetic_of(first.config):
        merger = Merger(config or first.config, first.splits, first.pretrained, device_of(first.config))
        keys = _keys(runs)
        if merger.takes_best_first:
            keys.sort(key=lambda key: -merger.score(key.ticket(), "validation")["accuracy"])
        reports = [merger.merge(key.ticket(), key.chain, key.cycle, look=False) | {"key": key} for key in keys]
    return merger, reports


def judge_runs(runs: Sequence[StoredRun], merger: Merger, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the scores of every network and the assessment of the result. Reads the test set."""
    with arithmetic_of(runs[0].config):
        report = merger.judge((merged, merged["key"].ticket()) for merged in reports)
    return {"name": " + ".join(run.config.name for run in runs), **report, **summarize_tickets(report)}


def sweep(runs: Sequence[StoredRun]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Merges the tickets under CIA, CAA, CIMA with the paper's factors, and greedily.

    Returns:
        A row for each: method, cima_factor (None but for CIMA), accepted (how many tickets), validation_accuracy and
        density; the one that is best on validation also has its test accuracy, as `accuracy`. And what `judge_runs`
        says about that one.
    """
    rules: list[tuple[str, float | None]] = [("cia", None), ("caa", None), *(("cima", f) for f in SWEPT_FACTORS)]
    rules.append(("greedy", None))
    rows, configs = [], []
    for method, factor in rules:
        rule = [f"superposition.method={method}", *([f"superposition.cima_factor={factor}"] if factor else [])]
        config = load_config(to_dict(runs[0].config), rule)
        merger, reports = superpose_runs(runs, config)
        configs.append(config)
        with arithmetic_of(runs[0].config):
            validation = merger.score(merger.superposed, "validation")
        rows.append(
            {
                "method": method,
                "cima_factor": factor,
                "accepted": sum(report["accepted"] for report in reports),
                "validation_accuracy": validation["accuracy"],
                "density": merger.superposed.density,
            }
        )
    best = max(range(len(rows)), key=lambda index: rows[index]["validation_accuracy"])
    judged = judge_runs(runs, *superpose_runs(runs, configs[best]))
    rows[best]["accuracy"] = judged["superposed"]["accuracy"]
    return rows, judged


def sweep_table(rows: Sequence[dict[str, Any]], num_tickets: int) -> Table:
    """Returns the rows of `sweep` for a terminal; the one that is best on validation stands out."""
    table = Table(title="superposition rules on the same tickets; test accuracy of the best on validation only")
    for column in ("method", "cima_factor"):
        table.add_column(column)
    for column in ("accepted", "validation", "density", "test"):
        table.add_column(column, justify="right")
    for row in rows:
        factor = "" if row["cima_factor"] is None else str(row["cima_factor"])
        accuracy = f"{row['accuracy']:.2%}" if "accuracy" in row else ""
        cells = (row["method"], factor, f"{row['accepted']} of {num_tickets}", f"{row['validation_accuracy']:.2%}")
        table.add_row(*cells, f"{row['density']:.4f}", accuracy, style="bold" if accuracy else None)
    return table


@dataclass(frozen=True)
class _Key:
    """Where a ticket lies, and its chain counted on over the runs."""

    run: StoredRun
    first_chain: int
    own_chain: int
    cycle: int

    @property
    def chain(self) -> int:
        return self.first_chain + self.own_chain

    def ticket(self) -> Ticket:
        return self.run.ticket(self.own_chain, self.cycle)


def _keys(runs: Sequence[StoredRun]) -> list[_Key]:
    keys: list[_Key] = []
    first_chain = 0
    for run in runs:
        keys += [_Key(run, first_chain, chain, cycle) for chain, cycle in run.keys]
        first_chain += run.config.tickets.num_chains
    return keys


def _of_superposition(override: str) -> str:
    key = override.partition("=")[0]
    if "." in key and key != "data.root" and not key.startswith("superposition."):
        raise ValueError(
            f"an override must be a setting of superposition, since nothing is trained here, or data.root; got {key!r}."
        )
    if "." not in key and key not in (own := [field.name for field in fields(SuperpositionConfig)]):
        raise ValueError(f"unknown key 'superposition.{key}'{suggestion(key, own)}")
    return override if "." in key else f"superposition.{override}"
