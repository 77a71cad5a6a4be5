"""The main job: phase one, fork, superpose, judge."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import ray

from suptickets_ray.config import Config
from suptickets_ray.config_io import changes_results, config_digest, flatten, to_dict, to_yaml
from suptickets_ray.config_resolution import resolve
from suptickets_ray.distributed.exploration import Exploration
from suptickets_ray.distributed.folding import Folding
from suptickets_ray.distributed.lock import check_free, only_process
from suptickets_ray.distributed.monitor import (
    Event,
    OnEvent,
    collecting_warnings,
    monitoring,
    reported_warnings,
    show_events,
)
from suptickets_ray.distributed.result import (
    Clock,
    RunResult,
    assemble_result,
    stored_result,
    without_nan,
)
from suptickets_ray.distributed.session import check_address, ray_session
from suptickets_ray.distributed.sharing import checked_storage
from suptickets_ray.distributed.worker import worker_settings
from suptickets_ray.reporting.logs import EventLog
from suptickets_ray.reporting.table import ROWS
from suptickets_ray.reporting.timeline import Timeline
from suptickets_ray.search.files import holds_search
from suptickets_ray.search.keys import phase_one_key
from suptickets_ray.tickets.cycles import canonical_order
from suptickets_ray.tickets.store import PRETRAINED_FILE, RunStore, TicketStore, child
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data.fingerprint import DATA_FILE, check_data, fingerprint
from suptickets_ray.training.loop import budget_of
from suptickets_ray.training.rehearsal import rehearse
from suptickets_ray.training.state import is_whole, read_progress, state_digest
from suptickets_ray.training.tensorboard import write_summary

RAY_TRAIN_FOLDER = "ray_train"
_SLOW_SUPERPOSER = (
    "the superposer recalibrates and judges every network on one thread of a CPU, which may take longer than all "
    "cycles. cluster.superposer_gpus=0.1 gives it a share of a GPU, beside e.g. cluster.gpus_per_worker=0.9."
)


def train(config: Config, on_event: OnEvent = lambda event: None, *, verbose: bool = False) -> RunResult:
    """Runs the whole job of a recipe, goes on with an interrupted one, or returns at once when it is done.

    Args:
        config: The recipe, from `load_config` or made by hand.
        on_event: Is told of the progress, in this process: dicts whose `kind` is phase, resumed, epoch, cycle_epoch,
            ticket, fold, waiting or warning; accuracies are shares of 1, epochs count from 1, chains and cycles from 0.
        verbose: Whether Ray's own messages are shown.

    Raises:
        ValueError: If the recipe cannot be run, or the folder holds a run of another one. Nothing was started.
        RuntimeError: If the run fails; what is finished stays, and the same call goes on from there.

    Source: Sup-tickets, 2205.15322, algorithm 1.
    """
    config = resolve(config)
    path = run_path(config)
    store = RunStore(path)
    store.check(writes=False)
    if (result := finished_result(config)) is not None:
        return RunResult(path, result, resumed=True)
    check_free(path)
    store.check(writes=True)
    clock = Clock()
    warnings: list[str] = []
    timeline: Timeline | None = None
    log = EventLog(config.name)

    def noted(event: Event) -> None:
        if timeline is not None:
            timeline.note(event)
        log(event)
        on_event(event)

    watch = collecting_warnings(warnings, noted)
    loaded, data = _prepare(config, store, watch)
    with (
        _alone(config, watch),
        ray_session(config.cluster, watch, verbose=verbose),
        monitoring() as monitor,
        checked_storage(path),
        as_run_failure(),
        ExitStack() as stack,
    ):
        begin_folder(store, config, data)
        timeline = stack.enter_context(closing(Timeline(store, config_digest(config), clock.began)))
        settings = worker_settings(config, path, monitor, loaded)
        del loaded  # from here on it lies in the object store
        budget = budget_of(config)
        clock.lap("start")

        watch({"kind": "phase", "name": "pretrain", "epochs": budget.pretrain_epochs})
        state = phase_one(config, settings, store, watch, verbose)
        clock.lap("pretrain")

        watch({"kind": "phase", "name": "explore", "chains": config.tickets.chains, "cycles": budget.cycles})
        pretrained = ray.put(state)
        exploration = Exploration(
            config,
            settings,
            pretrained,
            budget.cycles,
            lambda: show_events(monitor, watch),
            pretrained_digest=state_digest(state),
        )
        # Before the explorers: a GPU of its own must not be taken by them.
        superposer = stack.enter_context(closing(Folding(settings, pretrained, exploration)))
        with exploration:
            if exploration.num_stored:
                what = f"{exploration.num_stored} finished tickets"
                watch({"kind": "resumed", "what": what, "tickets": exploration.num_stored})
            for chain in exploration.remade:
                watch(
                    {
                        "kind": "warning",
                        "text": f"the files of chain {chain} are damaged or belong to another run; it runs again.",
                    }
                )
            order = list(canonical_order(config.tickets.chains, budget.cycles))
            for chain, cycle in superposer.best_first(order) if config.superposition.method == "greedy" else order:
                superposer.fold(chain, cycle)
        clock.lap("explore")

        watch({"kind": "phase", "name": "superpose"})
        table, report = superposer.judge()
        superposed = Ticket.from_arrow(table)  # now: the table's memory is Ray's
        show_events(monitor, watch)
        clock.lap("superpose")
    store.write("superposed.arrow", superposed.to_bytes())
    result = without_nan(assemble_result(config, report, clock.seconds(), warnings))
    _picture(config, path, result)
    store.write("result.json", json.dumps(result, indent=2).encode())
    return RunResult(path, result, resumed=False)


@contextlib.contextmanager
def _alone(config: Config, on_event: OnEvent) -> Iterator[None]:
    """Keeps others out of the run's folder, in which another recipe's may have been begun and ended since the start."""
    with only_process(run_path(config), lambda text: on_event({"kind": "waiting", "text": text})):
        finished_result(config)
        yield


def _prepare(config: Config, store: RunStore, on_event: OnEvent) -> tuple[Mapping[str, Any], str]:
    """Finds what cannot work before anything is started; returns what the data function gave, and its fingerprint."""
    if config.cluster.gpus_per_worker and not config.cluster.superposer_gpus:
        on_event({"kind": "warning", "text": _SLOW_SUPERPOSER})
    check_address(config.cluster)
    with reported_warnings(on_event):
        loaded = rehearse(config)
    data = fingerprint(loaded)
    check_data(store, data)
    return loaded, data


def begin_folder(store: RunStore, config: Config, data: str) -> None:
    """Writes into the folder of a run or search what it is, so that nothing else is ever done in it."""
    store.remove_temporaries()
    store.write("config.yaml", to_yaml(config).encode())
    store.write(DATA_FILE, data.encode())


def _picture(config: Config, path: str, result: dict[str, Any]) -> None:
    """Writes the report and TensorBoard's closing page. Of what they show nothing else depends."""
    # matplotlib takes a second to import, and an answer that all is done does not need it.
    from suptickets_ray.reporting.pictures import pictures_of
    from suptickets_ray.reporting.report_runs import write_run_report

    findings = write_run_report(path, result=result)
    versions = "\n".join(f"    {name} {version}" for name, version in result["versions"].items())
    recipe = "\n".join(f"    {line}" for line in to_yaml(config).splitlines())
    networks = {name: result[name] for name in ROWS if isinstance(result.get(name), dict)}
    metrics = {f"test/{name}": network["accuracy"] for name, network in networks.items()}
    write_summary(
        child(path, "tensorboard"),
        {key: value for key, value in flatten(to_dict(config)) if value is not None and changes_results(key)},
        {tag: value for tag, value in metrics.items() if value is not None},
        {"recipe": recipe, "versions": versions},
        pictures_of(findings),
    )


def run_path(config: Config) -> str:
    """Returns the absolute path or URI of the run's folder.

    Raises:
        ValueError: If the storage is a URI that pyarrow.fs does not know.
    """
    if "://" in config.storage:
        path = child(config.storage, config.name)
        RunStore(path)
        return path
    return str((Path(config.storage).expanduser() / config.name).absolute())


def finished_result(config: Config) -> dict[str, Any] | None:
    """Returns the result of this very recipe if its run is done, None if it was interrupted or never started.

    Raises:
        ValueError: If the folder holds a search, finished or not, or the run of another recipe or on other data; the
            sentence names the keys that differ.
    """
    path = run_path(config)
    if holds_search(RunStore(path)):
        raise ValueError(f"the folder of a run must hold no search; {path} does. Give the run a name= of its own.")
    result = stored_result(path, config, "run")
    return result if result is not None and _is_whole(RunStore(path), result) else None


def _is_whole(store: RunStore, result: dict[str, Any]) -> bool:
    """Whether the files that a result speaks of are there and are its own; what is not is made again."""
    try:
        superposed = Ticket.from_bytes(store.read("superposed.arrow"))
        tickets = {(row["chain"], row["cycle"]) for row in result["tickets"]}
        own = superposed.digest == result["superposed"]["digest"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return own and tickets <= set(TicketStore(store).list()) and store.exists("report.html")


def phase_one(config: Config, settings: dict[str, Any], store: RunStore, on_event: OnEvent, verbose: bool) -> bytes:
    """Returns the state that phase one ends in, trained unless an earlier start of the run has done that."""
    if store.exists(PRETRAINED_FILE):
        state = store.read(PRETRAINED_FILE)
        if is_whole(state) and read_progress(state).get("recipe") == int(phase_one_key(config), 16):
            on_event({"kind": "resumed", "what": "the finished phase one"})
            store.remove_folder(RAY_TRAIN_FOLDER)  # its checkpoints only serve a phase one that is not finished
            return state
        on_event(
            {
                "kind": "warning",
                "text": f"{PRETRAINED_FILE} is damaged or belongs to another run; phase one is trained again.",
            }
        )
    # Ray Train takes seconds to import, and an answer that all is done, or a refusal, does not need it.
    from suptickets_ray.distributed.pretrain import pretrain

    state = pretrain(config, settings, RAY_TRAIN_FOLDER, on_event, verbose=verbose)
    store.write(PRETRAINED_FILE, state)
    store.remove_folder(RAY_TRAIN_FOLDER)
    return state


@contextlib.contextmanager
def as_run_failure() -> Iterator[None]:
    """A failure here comes after the start, so it is none of the settings': a damaged file, or a worker's own error."""
    try:
        yield
    except ValueError as error:
        raise RuntimeError(str(error)) from error
