"""Ray Tune over exploration and superposition: what trials share is trained once for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune as ray_tune

from suptickets_ray.config import Config
from suptickets_ray.config_io import all_keys, to_dict, to_yaml
from suptickets_ray.config_resolution import resolve
from suptickets_ray.distributed.ledger import Ledger
from suptickets_ray.distributed.lock import only_process
from suptickets_ray.distributed.monitor import (
    Event,
    Monitor,
    OnEvent,
    collecting_warnings,
    monitoring,
    reported_warnings,
    start_here,
    watched,
)
from suptickets_ray.distributed.result import Clock, RunResult
from suptickets_ray.distributed.room import explorer_bundle, places_for_workers, worker_labels
from suptickets_ray.distributed.run import as_run_failure, phase_one, run_path
from suptickets_ray.distributed.search_result import conclude, finished_search, trial_rows
from suptickets_ray.distributed.session import check_address, ray_session
from suptickets_ray.distributed.sharing import checked_storage
from suptickets_ray.distributed.trial import run_trial
from suptickets_ray.distributed.worker import worker_settings
from suptickets_ray.reporting.logs import EventLog
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import phase_one_key
from suptickets_ray.search.plan import SearchPlan
from suptickets_ray.search.space import (
    DEFAULT_SPACE,
    Dimension,
    parse_space,
)
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.loop import budget_of
from suptickets_ray.training.rehearsal import rehearse

TUNE_FOLDER = "ray_tune"
_MAX_FAILURES = 2  # of a trial's machines


def tune(config: Config, on_event: OnEvent = lambda event: None, *, verbose: bool = False) -> RunResult:
    """Searches `config.search.space`, goes on with an interrupted search, or returns at once when it is done.

    Args:
        config: The recipe; its name is the search's.
        on_event: Is told of the progress: dicts whose `kind` is phase, epoch, ticket, trial, waiting or warning.
        verbose: Whether Ray's own messages are shown.

    Raises:
        ValueError: If space or recipe cannot be run, or the folder holds another search. Nothing was started.
        RuntimeError: If the search fails; what is finished stays, and the same call goes on from there.
    """
    config = resolve(config)
    plan = SearchPlan(config)
    files = SearchFiles(run_path(config))
    if (result := finished_search(files, config)) is not None:
        return RunResult(files.path, result, resumed=True)
    clock = Clock()
    warnings = plan.warnings()
    log = EventLog(config.name)

    def noted(event: Event) -> None:
        log(event)
        on_event(event)

    watch = collecting_warnings(warnings, noted)
    with reported_warnings(watch):
        loaded = rehearse(plan.config_of(plan.known[0]))
    check_address(config.cluster)
    with (
        only_process(files.path),
        ray_session(config.cluster, watch, verbose=verbose),
        checked_storage(files.path),
    ):
        concurrency, explorers = _places(plan)
        with monitoring() as monitor, as_run_failure():
            files.store.remove_temporaries()
            files.store.write("config.yaml", to_yaml(config).encode())
            settings = worker_settings(config, files.path, monitor, loaded)
            del loaded
            _pretrain_all(plan, files, settings, watch, verbose)
            clock.lap("pretrain")
            watch({"kind": "phase", "name": "search", "trials": plan.num_trials})
            parameters = _parameters(plan, files, settings, explorers)
            grid = _fit(plan, files, parameters, concurrency, monitor, watch, verbose)
            clock.lap("search")
    return RunResult(files.path, conclude(plan, files, trial_rows(plan, files, grid), clock, warnings), resumed=False)


def trainable(config: Config) -> Any:
    """Returns a Tune trainable of a recipe, for a `tune.Tuner` of your own with `param_space(config)`.

    Call it on a Ray that runs: it trains the phase ones that the space needs, and trials then share them and all
    tickets, under the recipe's storage and name. It reports validation_accuracy, validation_loss and cyclic_epochs
    after every cycle.

    Raises:
        ValueError: As `tune`.
    """
    config = resolve(config)
    plan, files = SearchPlan(config), SearchFiles(run_path(config))
    loaded = rehearse(plan.config_of(plan.known[0]))
    _, explorers = _places(plan)
    files.store.write("config.yaml", to_yaml(config).encode())
    monitor = start_here(Monitor)
    settings = worker_settings(config, files.path, monitor, loaded)
    _pretrain_all(plan, files, settings, lambda event: None, verbose=False)
    return _sized(config, _parameters(plan, files, settings, explorers))


def param_space(config: Config) -> dict[str, Any]:
    """Returns the recipe's `search.space` as Ray Tune's own objects."""
    dimensions = parse_space(config.search.space or DEFAULT_SPACE, all_keys())
    return {key: _domain(dimension) for key, dimension in dimensions.items()}


def _places(plan: SearchPlan) -> tuple[int, int]:
    """Returns how many trials run at once, and with how many explorers each.

    Raises:
        ValueError: If the cluster has no room for them; the sum stands in the sentence.
    """
    cluster, section = plan.config.cluster, plan.config.search
    places = places_for_workers(cluster, explorer_bundle(cluster))
    concurrency = section.max_concurrent_trials or max(min(places, plan.num_trials), 1)
    chains = max(plan.config_of(point).tickets.chains for point in plan.known or [{}])
    explorers = min(chains, cluster.num_explorers or chains, max(places // concurrency, 1))
    if concurrency * explorers > places:
        raise ValueError(
            f"search.max_concurrent_trials must leave room for every trial's explorers: {concurrency} trials x "
            f"{explorers} explorers x {cluster.cpus_per_worker} CPU and {cluster.gpus_per_worker:g} GPU = "
            f"{concurrency * explorers} places, and the cluster has {places}. Choose fewer trials at once."
        )
    return concurrency, explorers


def _parameters(plan: SearchPlan, files: SearchFiles, settings: dict[str, Any], explorers: int) -> dict[str, Any]:
    """Returns what every trial is given beside its values."""
    return {
        "recipe": to_dict(plan.config),
        "path": files.path,
        "worker": settings,
        "ledger": start_here(Ledger),
        "explorers_per_trial": explorers,
    }


def _domain(dimension: Dimension) -> Any:
    values = list(dimension.arguments)
    if dimension.kind in ("grid_search", "choice"):
        return getattr(ray_tune, dimension.kind)(values)
    return getattr(ray_tune, dimension.kind)(*values)


def _sized(config: Config, parameters: dict[str, Any]) -> Any:
    """The trial with its explorers' bundles; the trial itself only folds, and asks for nothing."""
    bundle = explorer_bundle(config.cluster)
    num_explorers = parameters["explorers_per_trial"]
    # Ray leaves out the empty first bundle, so labels are those of the others.
    labels = worker_labels(config.cluster)
    selectors = {"bundle_label_selector": [labels] * num_explorers} if labels else {}
    factory = ray_tune.PlacementGroupFactory([{"CPU": 0.0}] + [bundle] * num_explorers, **selectors)
    with_parameters = ray_tune.with_parameters(run_trial, search=parameters)
    return ray_tune.with_resources(with_parameters, factory)


def _pretrain_all(
    plan: SearchPlan, files: SearchFiles, settings: dict[str, Any], on_event: OnEvent, verbose: bool
) -> None:
    """Trains every phase one once, one after another: while trials wait for CPUs, Train would wait for theirs."""
    needed = plan.phase_ones()
    for number, config in enumerate(needed.values()):
        path = files.phase_one_path(config)
        epochs = budget_of(config).pretrain_epochs
        on_event({"kind": "phase", "name": "pretrain", "epochs": epochs, "number": number + 1, "of": len(needed)})
        own = {
            **settings,
            "config": to_dict(config),
            "run_path": path,
            "tensorboard": child(files.tensorboard, f"phase-one-{phase_one_key(config)}"),
        }
        phase_one(config, own, RunStore(path), on_event, verbose)


def _fit(
    plan: SearchPlan,
    files: SearchFiles,
    parameters: dict[str, Any],
    concurrency: int,
    monitor: Any,
    on_event: OnEvent,
    verbose: bool,
) -> Any:
    """Runs Ray Tune in a thread of its own, so that Ctrl-C is ours; returns its results."""
    files.store.remove_folder(TUNE_FOLDER)  # an earlier start's; what counts lies beside it
    section, left = plan.config.search, plan.left(files)
    algorithm, space, num_samples = None, {"point": ray_tune.grid_search(left)}, 1
    if section.searcher == "optuna":
        algorithm, num_samples = _optuna(plan, files)
        space = {}
    if not (left or (algorithm is not None and num_samples)):
        return []
    scheduler = None
    if section.scheduler == "asha":
        longest = max(budget_of(plan.config_of(point)).cyclic_epochs for point in plan.known) * section.seeds
        shortest = min(plan.config_of(point).tickets.cycle_epochs for point in plan.known)
        scheduler = ray_tune.schedulers.ASHAScheduler(
            time_attr="cyclic_epochs", max_t=longest + 1, grace_period=shortest, reduction_factor=2
        )
        # max_t: a trial that reaches its last cycle ends by itself, with its result kept.
    filesystem, location = files.store.location
    with _only_our_logger():
        tuner = ray_tune.Tuner(
            _sized(plan.config, parameters),
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                metric=plan.metric,
                mode=plan.mode,
                search_alg=algorithm,
                scheduler=scheduler,
                num_samples=num_samples,
                max_concurrent_trials=concurrency,
                # A stopped trial's process ends, and with it its explorers.
                reuse_actors=False,
            ),
            run_config=ray_tune.RunConfig(
                name=TUNE_FOLDER,
                storage_path=location,
                storage_filesystem=filesystem,
                verbose=int(verbose),
                failure_config=ray_tune.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        return watched(tuner.fit, monitor, on_event, "the search")


@contextmanager
def _only_our_logger() -> Iterator[None]:
    """Keeps Tune's own loggers out: each scalar is written once, in the tree that is printed."""
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


def _optuna(plan: SearchPlan, files: SearchFiles) -> tuple[Any, int]:
    """Optuna's searcher, told what earlier starts have found, and how many trials are left."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points, rewards = [], []
    for point, seeds in files.points():
        if len(seeds) == plan.config.search.seeds:
            points.append({key: value for key, value in point.items() if key in plan.dimensions})
            rewards.append(sum(row[plan.metric] for row in seeds) / len(seeds))
    space = {
        # Optuna's own: a grid is to it a choice like any other.
        key: ray_tune.choice(list(dimension.values)) if dimension.values is not None else _domain(dimension)
        for key, dimension in plan.dimensions.items()
    }
    known = {"points_to_evaluate": points, "evaluated_rewards": rewards} if points else {}
    searcher = OptunaSearch(space, metric=plan.metric, mode=plan.mode, seed=plan.config.seed, **known)
    return searcher, max(plan.num_trials - len(points), 0)
