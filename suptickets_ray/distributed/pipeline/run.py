"""The main job: pretraining, exploration, superposition, evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import ray

from suptickets_ray.config import Config
from suptickets_ray.distributed.cluster.event_queue import (
    collecting_warnings,
    monitoring,
    reported_warnings,
    show_events,
)
from suptickets_ray.distributed.cluster.run_lock import check_free, only_process
from suptickets_ray.distributed.cluster.session import check_address, ray_session
from suptickets_ray.distributed.cluster.shared_storage import checked_storage
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.distributed.pipeline.exploration import Exploration
from suptickets_ray.distributed.pipeline.result import (
    Clock,
    RunResult,
    assemble_result,
    stored_result,
    without_nan,
)
from suptickets_ray.distributed.pipeline.stages import as_run_failure, choose_for_machine, pretrained_state, run_path
from suptickets_ray.distributed.pipeline.superposer_client import SuperposerClient
from suptickets_ray.metric import Metric
from suptickets_ray.progress.callbacks import Callbacks, make_callbacks
from suptickets_ray.progress.events import Event, JobPlanned, OnEvent, PhaseStarted, Resumed, Starting, Waiting, Warned
from suptickets_ray.progress.final_events import finished_event, written_event
from suptickets_ray.progress.log import EventLog
from suptickets_ray.progress.summary_table import ROWS
from suptickets_ray.progress.timeline import Timeline
from suptickets_ray.recipes.load import changes_results, config_digest, flatten, to_dict, to_yaml
from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.recipes.resolve import resolve
from suptickets_ray.search.files import holds_search
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.tickets.run_folder import TENSORBOARD_FOLDER, TIMELINE_FILE
from suptickets_ray.tickets.schedule import canonical_order
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.tickets.ticket_store import Origin
from suptickets_ray.training.checkpoint import is_whole, state_digest
from suptickets_ray.training.data import make_splits
from suptickets_ray.training.data.fingerprint import check_data, fingerprint
from suptickets_ray.training.loop import budget_of
from suptickets_ray.training.preflight import preflight
from suptickets_ray.training.tensorboard import write_summary
from suptickets_ray.training.validation_size import warnings_about

_SLOW_SUPERPOSER = (
    "the superposer recalibrates and evaluates every network on one CPU thread, which may take longer than all cycles. "
    "cluster.superposer_gpus=0.1 gives it a fraction of a GPU, beside e.g. cluster.gpus_per_explorer=0.9."
)


def train(
    config: Config,
    on_event: OnEvent = lambda event: None,
    *,
    callbacks: Iterable[OnEvent] = (),
    verbose: bool = False,
) -> RunResult:
    """Runs a recipe, continues an interrupted run, or returns at once if the run is done.

    Args:
        config: The recipe, from `load_config` or created directly.
        on_event: Called with progress events, in this process. `suptickets_ray.progress.events` has a class for each
            thing that happens, e.g. `EpochEnded` and `TicketMerged`. An exception of it ends the run.
        callbacks: Called like `on_event`, and with `RunFinished` at the end, besides those of `run.callbacks`. A method
            `close` is called last. An error of one is reported as a warning, and the run continues.
        verbose: Whether Ray's messages are shown.

    Raises:
        ValueError: If the recipe cannot be run, or the folder holds a run of another recipe. Nothing was started.
        RuntimeError: If the run fails. Finished work is kept, and the same call continues from there.

    Source: Sup-tickets, 2205.15322, algorithm 1.
    """
    config = resolve(config)
    path = run_path(config)
    files = RecordedRun(path)
    files.store.check(writes=False)
    if (result := finished_result(config)) is not None:
        if not files.has_report:
            _write_report(config.run.report, files, result)
        return RunResult(path, result, resumed=True)
    check_free(path)
    files.store.check(writes=True)
    config = choose_for_machine(config, files)
    clock, timeline = Clock(), None
    warnings: list[str] = []
    log = EventLog(config.name)
    receivers = Callbacks([], log)

    def handle_event(event: Event) -> None:
        if timeline is not None:
            timeline.record(event)
        log(event)
        on_event(event)
        receivers(event)

    emit = collecting_warnings(warnings, handle_event)
    loaded, data = _prepare(config, files.store, emit)
    receivers = Callbacks([*callbacks, *make_callbacks(config, path)], emit, warnings)
    with closing(receivers):
        with (
            _locked_folder(config, emit),
            ray_session(config.cluster, emit, verbose=verbose),
            monitoring() as monitor,
            checked_storage(path),
            as_run_failure(),
            ExitStack() as stack,
        ):
            files.begin(config, data)
            timeline = stack.enter_context(closing(Timeline(files.store, config_digest(config), clock.began)))
            context = WorkerContext.create(config, path, monitor, loaded)
            del loaded  # it is in the object store now
            budget = budget_of(config)
            clock.lap("start")

            emit(PhaseStarted("pretrain", epochs=budget.pretrain_epochs))
            state = pretrained_state(context, emit, verbose)
            clock.lap("pretrain")

            emit(PhaseStarted("explore", chains=config.tickets.num_chains, cycles=budget.cycles))
            pretrained = ray.put(state)
            exploration = Exploration(
                context,
                pretrained,
                budget.cycles,
                lambda: show_events(monitor, emit),
                pretrained_digest=state_digest(state),
            )
            # Created before the explorers, which could otherwise take its GPU.
            superposer = stack.enter_context(closing(SuperposerClient(context, pretrained, exploration)))
            with exploration:
                _report_begin(exploration, emit)
                order = list(canonical_order(config.tickets.num_chains, budget.cycles))
                for chain, cycle in superposer.best_first(order) if config.superposition.method == "greedy" else order:
                    superposer.merge(chain, cycle)
            clock.lap("explore")

            emit(PhaseStarted("superpose"))
            table, report = superposer.evaluate()
            superposed = Ticket.from_arrow(table)  # before Ray ends, which owns the table's memory
            show_events(monitor, emit)
            clock.lap("superpose")
        result = without_nan(assemble_result(config, report, clock.seconds(), warnings))
        return _finish(config, files, superposed, result, emit, receivers)


def _finish(
    config: Config, files: RecordedRun, superposed: Ticket, result: dict[str, Any], emit: OnEvent, receivers: Callbacks
) -> RunResult:
    """Writes the sup-ticket, the result and the report. The result is complete without the report."""
    files.write_superposed(superposed)
    files.write_result(result)
    emit(written_event(files.path, result, "superposed"))
    _write_report(config.run.report, files, result)
    receivers(finished_event(files.path, result, "superposed"))
    return RunResult(files.path, result, resumed=False)


@contextlib.contextmanager
def _locked_folder(config: Config, on_event: OnEvent) -> Iterator[None]:
    """Keeps other processes out of the run's folder. Checks again whether another recipe was run in it meanwhile."""
    with only_process(run_path(config), lambda text: on_event(Waiting(text))):
        finished_result(config)
        yield


def _plan(config: Config) -> JobPlanned:
    budget, chains = budget_of(config), config.tickets.num_chains
    explorers = min(config.cluster.num_explorers or chains, chains)
    return JobPlanned(budget.pretrain_epochs, chains, budget.cycles, budget.cycle_epochs, explorers)


def _report_begin(exploration: Exploration, on_event: OnEvent) -> None:
    """Reports what earlier starts have left, what of it cannot be used, and that explorers start."""
    if exploration.num_stored:
        what = f"{exploration.num_stored} finished tickets"
        on_event(Resumed(what, exploration.num_stored, exploration.stored_cycles))
    for chain in exploration.restarted:
        on_event(Warned(f"the files of chain {chain} are damaged or belong to another run; the chain restarts."))
    if not exploration.is_done:
        on_event(Starting("explorers"))


def _prepare(config: Config, store: RunStore, on_event: OnEvent) -> tuple[Mapping[str, Any], str]:
    """Checks the recipe before anything is started. Returns the data function's result, and its fingerprint."""
    on_event(_plan(config))
    if config.cluster.gpus_per_worker and not config.cluster.superposer_gpus:
        on_event(Warned(_SLOW_SUPERPOSER))
    check_address(config.cluster)
    with reported_warnings(on_event):
        loaded = preflight(config)
    for text in warnings_about(config, make_splits(loaded, config.data)):
        on_event(Warned(text))
    data = fingerprint(loaded)
    check_data(store, data)
    return loaded, data


def _write_report(kind: str, files: RecordedRun, result: dict[str, Any]) -> None:
    """Writes the report and TensorBoard's summary, unless `kind` is "none". Nothing else depends on them."""
    if kind == "none":
        return
    config, path = files.config, files.path
    # Imported here: matplotlib takes a second to import, and a finished run does not need it.
    from suptickets_ray.report.load import write_run_report
    from suptickets_ray.report.tensorboard_images import images_of

    findings = write_run_report(path, result=result)
    versions = "\n".join(f"    {name} {version}" for name, version in result["versions"].items())
    recipe = "\n".join(f"    {line}" for line in to_yaml(config).splitlines())
    networks = {name: result[name] for name in ROWS if isinstance(result.get(name), dict)}
    metric = Metric.of_result(result).name
    metrics = {f"test/{name}": network[metric] for name, network in networks.items()}
    write_summary(
        child(path, TENSORBOARD_FOLDER),
        {key: value for key, value in flatten(to_dict(config)) if value is not None and changes_results(key)},
        {tag: value for tag, value in metrics.items() if value is not None},
        {"assessment": result["assessment"]["sentence"], "recipe": recipe, "versions": versions},
        images_of(findings),
    )


def finished_result(config: Config) -> dict[str, Any] | None:
    """Returns the result if the run of exactly this recipe is done, None if it is unfinished or not started.

    Raises:
        ValueError: If the folder holds a search, finished or not, or a run of another recipe or on other data. The text
            names the keys that differ.
    """
    path = run_path(config)
    if holds_search(RunStore(path)):
        raise ValueError(f"Cannot run in {path}: the folder holds a search. Choose another name=.")
    result = stored_result(path, config, "run")
    return result if result is not None and _is_intact(RecordedRun(path), result) else None


def _is_intact(files: RecordedRun, result: dict[str, Any]) -> bool:
    """Whether the files of a result exist and belong to it. Otherwise the run writes them again."""
    try:
        superposed, pretrained = files.superposed(), files.pretrained_state()
        digests = {(row["chain"], row["cycle"]): row["digest"] for row in result["tickets"]}
        own = superposed.digest == result["superposed"]["digest"] and is_whole(pretrained)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    stored = files.tickets.own(Origin(exploration_key(files.config), state_digest(pretrained)))
    return own and digests.items() <= stored.items() and files.store.exists(TIMELINE_FILE)
