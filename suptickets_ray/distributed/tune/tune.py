"""Ray Tune over exploration and superposition. What trials share is trained only once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from ray import tune as ray_tune

from suptickets_ray.config import Config
from suptickets_ray.distributed.cluster.event_queue import (
    Monitor,
    collecting_warnings,
    monitoring,
    reported_warnings,
    start_local_actor,
    watched,
)
from suptickets_ray.distributed.cluster.run_lock import check_free, only_process
from suptickets_ray.distributed.cluster.session import check_address, ray_session
from suptickets_ray.distributed.cluster.shared_storage import check_shared, checked_storage
from suptickets_ray.distributed.cluster.watchdog import capacity_watch, wait_for_capacity
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.distributed.pipeline.result import Clock, RunResult
from suptickets_ray.distributed.pipeline.stages import as_run_failure, choose_for_machine, pretrained_state, run_path
from suptickets_ray.distributed.tune.held_lock import hold_lock, holds_lock, release_lock
from suptickets_ray.distributed.tune.leases import LeaseServer
from suptickets_ray.distributed.tune.placement import sized_trial, wait_for_placement
from suptickets_ray.distributed.tune.result import conclude, finished_search, num_failed, trial_rows
from suptickets_ray.distributed.tune.searcher import early_stopping, optuna_searcher, tune_space
from suptickets_ray.distributed.tune.trial import TrialContext, run_trial
from suptickets_ray.progress.callbacks import Callbacks, make_callbacks
from suptickets_ray.progress.events import (
    Event,
    JobPlanned,
    OnEvent,
    PhaseStarted,
    Resumed,
    TicketFinished,
    Waiting,
    Warned,
)
from suptickets_ray.progress.final_events import finished_event, written_event
from suptickets_ray.progress.log import EventLog
from suptickets_ray.recipes.declarations import all_keys
from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.recipes.resolve import resolve
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import pretraining_key
from suptickets_ray.search.plan import SearchPlan
from suptickets_ray.search.space import default_space, parse_space
from suptickets_ray.tickets.run_folder import DIVERGED_FILE, RAY_TUNE_FOLDER
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.data import make_splits
from suptickets_ray.training.data.fingerprint import check_data, fingerprint
from suptickets_ray.training.divergence import DivergedError
from suptickets_ray.training.loop import budget_of
from suptickets_ray.training.preflight import preflight
from suptickets_ray.training.validation_size import warnings_about

_MAX_FAILURES = 2  # per trial, for lost machines


def tune(
    config: Config,
    on_event: OnEvent = lambda event: None,
    *,
    callbacks: Iterable[OnEvent] = (),
    verbose: bool = False,
) -> RunResult:
    """Searches `config.search.space`, continues an interrupted search, or returns at once if it is done.

    A search with failed trials is not done: the same call retries them.

    Args:
        config: The recipe; its name is the search's.
        on_event: Called with progress events, in this process. `suptickets_ray.progress.events` has a class for each
            thing that happens, e.g. `TrialFinished`. An exception of it ends the search.
        callbacks: Called like `on_event`, besides those of `run.callbacks`; see `train`.
        verbose: Whether Ray's messages are shown.

    Raises:
        ValueError: If the space or the recipe is invalid, or the folder holds another search. Nothing was started.
        RuntimeError: If the search fails. Finished results are kept, and the same call continues from them.
    """
    config = choose_for_machine(resolve(config), RecordedRun(run_path(config)), searches=True)
    plan = SearchPlan(config)
    files = SearchFiles(run_path(config), config)
    files.store.check(writes=False)
    earlier = finished_search(files, config)
    if earlier is not None and not num_failed(earlier):
        return RunResult(files.path, earlier, resumed=True)
    if not holds_lock(files.path):
        check_free(files.path)
    files.store.check(writes=True)
    check_address(config.cluster)
    clock = Clock()
    warnings: list[str] = []
    log = EventLog(config.name)
    receivers = Callbacks([], log)

    def handle_event(event: Event) -> None:
        if isinstance(event, TicketFinished):
            files.count("cycle")
        log(event)
        on_event(event)
        receivers(event)

    watch = collecting_warnings(warnings, handle_event)
    watch(JobPlanned(trials=plan.num_trials))
    for text in plan.warnings():
        watch(Warned(text))
    with reported_warnings(watch):
        loaded = _preflight(plan)
    for text in warnings_about(config, make_splits(loaded, config.data)):
        watch(Warned(text))
    data = fingerprint(loaded)
    check_data(files.store, data)
    release_lock(files.path)
    receivers = Callbacks([*callbacks, *make_callbacks(config, files.path)], watch, warnings)
    with closing(receivers):
        with (
            only_process(files.path, lambda text: watch(Waiting(text))),
            ray_session(config.cluster, watch, verbose=verbose),
            checked_storage(files.path),
        ):
            finished_search(files, config)  # another process may have finished it in the meantime
            concurrency, explorers = wait_for_placement(plan, lambda text: watch(Waiting(text)))
            with monitoring() as monitor, as_run_failure():
                files.begin()
                RecordedRun(files.path).begin(config, data)
                context = WorkerContext.create(config, files.path, monitor, loaded)
                del loaded
                clock.lap("start")
                _pretrain_all(plan, files, context, watch, verbose)
                clock.lap("pretrain")
                watch(PhaseStarted("search", trials=plan.num_trials))
                trial = TrialContext(context, start_local_actor(LeaseServer), explorers)
                grid = _fit(plan, files, earlier, trial, concurrency, monitor, watch, verbose)
                clock.lap("search")
        result = conclude(plan, files, trial_rows(plan, files, grid), clock, warnings)
        watch(written_event(files.path, result, "best"))
        receivers(finished_event(files.path, result, "best"))
        return RunResult(files.path, result, resumed=False)


def trainable(config: Config) -> Any:
    """Returns a Tune trainable of a recipe, for a user-defined `tune.Tuner` with `param_space(config)`.

    Ray must be running. This call trains the pretrained networks that the space needs. Trials share them and all
    tickets, under the recipe's storage and name. The trainable reports the validation scores, e.g. validation_accuracy,
    and cyclic_epochs after every cycle. This process locks the folder until it ends, or calls `tune` on it.

    Raises:
        ValueError: As `tune`. Also if pretraining depends on a key of the space that is not a choice. The Tuner draws
            the points, so the pretrained networks that they need would be unknown here.
    """
    config = choose_for_machine(resolve(config), RecordedRun(run_path(config)), searches=True)
    plan, files = SearchPlan(config, custom_tuner=True), SearchFiles(run_path(config), config)
    finished_search(files, config)  # raises if the folder holds something else
    loaded = _preflight(plan)
    data = fingerprint(loaded)
    check_data(files.store, data)
    wait_for_capacity(config.cluster, lambda text: None)
    _, explorers = wait_for_placement(plan, lambda text: None)
    hold_lock(files.path)
    check_shared(files.path)
    files.begin()
    RecordedRun(files.path).begin(config, data)
    monitor = start_local_actor(Monitor)
    context = WorkerContext.create(config, files.path, monitor, loaded)
    _pretrain_all(plan, files, context, lambda event: None, verbose=False)
    return _trainable(TrialContext(context, start_local_actor(LeaseServer), explorers))


def param_space(config: Config) -> dict[str, Any]:
    """Returns the recipe's `search.space` as objects of Ray Tune."""
    return tune_space(parse_space(config.search.space or default_space(config), all_keys()))


def _preflight(plan: SearchPlan) -> Mapping[str, Any]:
    """Checks every pretraining that the trials need, so that an invalid one does not fail hours later.

    Returns:
        The result of the data function.

    Raises:
        ValueError: If a recipe is invalid.
    """
    loaded: Mapping[str, Any] | None = None
    for config in plan.pretrainings(seeds=1).values():
        loaded = preflight(config, loaded)
    assert loaded is not None
    return loaded


def _trainable(context: TrialContext) -> Any:
    """Returns the function of a trial, with its context and resource bundles."""
    trial = ray_tune.with_parameters(run_trial, context=context)
    return sized_trial(context.worker.config.cluster, trial, context.num_explorers)


def _pretrain_all(
    plan: SearchPlan, files: SearchFiles, context: WorkerContext, on_event: OnEvent, verbose: bool
) -> None:
    """Trains every pretrained network once, one at a time, before any trial could take the CPUs."""
    needed = plan.pretrainings()
    for number, config in enumerate(needed.values()):
        path = files.pretrained_path(config)
        epochs = budget_of(config).pretrain_epochs
        on_event(PhaseStarted("pretrain", epochs=epochs, number=number + 1, of=len(needed)))
        tensorboard = child(files.tensorboard, f"pretraining-{pretraining_key(config)}")
        own_context = replace(context, config=config, run_path=path, tensorboard=tensorboard)
        is_stored = False

        def handle_event(event: Event) -> None:
            nonlocal is_stored
            is_stored = is_stored or (isinstance(event, Resumed) and event.epoch is None)
            on_event(event)

        try:
            pretrained_state(own_context, handle_event, verbose)
        except DivergedError as error:  # only the trials that need this network fail
            RunStore(path).write(DIVERGED_FILE, str(error).encode())
            on_event(Warned(str(error)))
        if not is_stored:
            files.count("pretraining")


def _fit(
    plan: SearchPlan,
    files: SearchFiles,
    earlier: Mapping[str, Any] | None,
    trial: TrialContext,
    concurrency: int,
    monitor: Any,
    on_event: OnEvent,
    verbose: bool,
) -> Any:
    """Runs Ray Tune in a separate thread, so that this process handles Ctrl-C. Returns Tune's results."""
    files.store.remove_folder(RAY_TUNE_FOLDER)  # left by an earlier start; no result is stored in it
    section, left = plan.config.search, plan.unfinished(files, earlier)
    algorithm, space, num_samples = None, {"point": ray_tune.grid_search(left)}, 1
    if section.searcher == "optuna":
        algorithm, num_samples = optuna_searcher(plan, files, earlier)
        space = {}
    if not (left or (algorithm is not None and num_samples)):
        return []
    filesystem, location = files.store.location
    with _tune_loggers_disabled():
        tuner = ray_tune.Tuner(
            _trainable(trial),
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                metric=plan.metric,
                mode=plan.mode,
                search_alg=algorithm,
                scheduler=early_stopping(plan),
                num_samples=num_samples,
                max_concurrent_trials=concurrency,
                # A reused process starts the next trial seconds earlier. An exception ends a stopped trial's function,
                # and with it the explorers.
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                name=RAY_TUNE_FOLDER,
                storage_path=location,
                storage_filesystem=filesystem,
                verbose=int(verbose),
                failure_config=ray_tune.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        return watched(
            tuner.fit, monitor, on_event, "the search", capacity_watch(plan.config.cluster, monitor, "a trial")
        )


@contextmanager
def _tune_loggers_disabled() -> Iterator[None]:
    """Disables Tune's loggers, so that each scalar is written only once, under the printed TensorBoard folder."""
    settings = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
