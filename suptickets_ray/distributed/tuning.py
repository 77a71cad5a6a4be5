"""Ray Tune over exploration and superposition: what trials share is trained once for all of them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray import tune as ray_tune

from suptickets_ray.config import Config
from suptickets_ray.config_io import all_keys, config_digest, differing_keys, from_yaml, to_dict, to_yaml
from suptickets_ray.config_resolution import resolve
from suptickets_ray.distributed.failures import root_cause
from suptickets_ray.distributed.ledger import Ledger
from suptickets_ray.distributed.lock import only_process
from suptickets_ray.distributed.monitor import Monitor, OnEvent, monitoring, reported_warnings, show_events
from suptickets_ray.distributed.result import Clock, versions, without_nan
from suptickets_ray.distributed.room import explorer_bundle, places_for_workers, worker_labels
from suptickets_ray.distributed.run import as_run_failure, phase_one, run_path
from suptickets_ray.distributed.session import check_address, ray_session
from suptickets_ray.distributed.sharing import checked_storage
from suptickets_ray.distributed.trial import SCORES, run_trial
from suptickets_ray.distributed.worker import worker_settings
from suptickets_ray.reporting.search import render_search
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import exploration_key, phase_one_key
from suptickets_ray.search.space import (
    DEFAULT_SPACE,
    METRICS,
    Dimension,
    Point,
    config_of,
    draw_points,
    grouped,
    listed_points,
    parse_space,
    point_key,
    settle,
)
from suptickets_ray.search.summary import budget_warning, noise_warning, ranked, to_parquet, trial_row
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.arithmetic import arithmetic_of
from suptickets_ray.training.data import load_data
from suptickets_ray.training.evaluation import evaluate_ticket
from suptickets_ray.training.loop import budget_of
from suptickets_ray.training.rehearsal import rehearse
from suptickets_ray.training.tensorboard import write_hparams

TUNE_FOLDER = "ray_tune"
_POLL_SECONDS = 0.2
_MAX_FAILURES = 2  # of a trial's machines


@dataclass(frozen=True)
class TuneResult:
    """A finished search."""

    path: str
    """Absolute path of the search's folder."""
    result: dict[str, Any]
    """What `result.json` holds."""
    resumed: bool
    """Whether nothing was left to do."""


def tune(config: Config, on_event: OnEvent = lambda event: None, *, verbose: bool = False) -> TuneResult:
    """Searches `config.search.space`, goes on with an interrupted search, or returns at once when it is done.

    Args:
        config: The recipe; its name is the search's.
        on_event: Is told of the progress: dicts whose `kind` is phase, epoch, ticket, trial or warning.
        verbose: Whether Ray's own messages are shown.

    Raises:
        ValueError: If space or recipe cannot be run, or the folder holds another search. Nothing was started.
        RuntimeError: If the search fails; what is finished stays, and the same call goes on from there.
    """
    config = resolve(config)
    search = Search(config)
    files = SearchFiles(run_path(config))
    if (result := _finished(files, config)) is not None:
        return TuneResult(files.path, result, resumed=True)
    clock = Clock()
    with reported_warnings(on_event):
        loaded = rehearse(search.config_of(search.known[0]) if search.known else config)
    check_address(config.cluster)
    with (
        only_process(files.path),
        ray_session(config.cluster, on_event, verbose=verbose),
        checked_storage(files.path),
    ):
        concurrency, explorers = search.places()
        with monitoring() as monitor, as_run_failure():
            files.store.remove_temporaries()
            files.store.write("config.yaml", to_yaml(config).encode())
            settings = worker_settings(config, files.path, monitor, loaded)
            del loaded
            _pretrain_all(search, files, settings, on_event, verbose)
            clock.lap("pretrain")
            on_event({"kind": "phase", "name": "search", "trials": search.num_trials})
            parameters = search.parameters(files, settings, explorers)
            grid = _fit(search, files, parameters, concurrency, monitor, on_event, verbose)
            clock.lap("search")
    rows = _rows(search, files, grid)
    result = _conclude(search, files, rows, clock)
    return TuneResult(files.path, result, resumed=False)


class Search:
    """A recipe's search section, checked and with its points drawn. Pure but for `places`."""

    def __init__(self, config: Config) -> None:
        """Draws the points, unless Optuna does that later.

        Raises:
            ValueError: If the space or one of its points is no experiment.
        """
        section = config.search
        self.config = config
        self.metric = section.metric
        self.mode = section.mode or METRICS[section.metric]
        self.dimensions: dict[str, Dimension] = parse_space(section.space or DEFAULT_SPACE, all_keys())
        self.points: list[Point] = []
        if section.searcher == "optuna":
            if section.num_trials is None:
                raise ValueError("search.num_trials must be given with search.searcher 'optuna'. 20 is a start.")
            _check_optuna()
            # Those that phase one may depend on; the rest is Optuna's.
            self.known = self._phase_one_points()
            self.num_trials = section.num_trials
        else:
            drawn = draw_points(self.dimensions, section.searcher, section.num_trials, config.seed)
            # What explores something new comes first, what only folds comes later.
            self.points = grouped(drawn, lambda point: exploration_key(self.config_of(point)))
            self.known = self.points
            self.num_trials = len(self.points)

    def config_of(self, point: Point, number: int = 0) -> Config:
        """Returns the recipe of a point under one of its seeds."""
        return config_of(self.config, point, number)

    def warnings(self) -> list[str]:
        """Returns what a person should know about the space before trusting its answer."""
        budgets = {}
        for point in self.known:
            config = self.config_of(point)
            budgets[config.tickets.cycle_epochs] = budget_of(config).cyclic_epochs
        warning = budget_warning(budgets)
        return [warning] if warning else []

    def phase_ones(self) -> dict[str, Config]:
        """Returns a recipe for every phase one that the trials need, by its key."""
        configs = (self.config_of(point, number) for point in self.known for number in range(self.config.search.seeds))
        return {phase_one_key(config): config for config in configs}

    def places(self) -> tuple[int, int]:
        """Returns how many trials run at once, and with how many explorers each.

        Raises:
            ValueError: If the cluster has no room for them; the sum stands in the sentence.
        """
        cluster, section = self.config.cluster, self.config.search
        places = places_for_workers(cluster, explorer_bundle(cluster))
        concurrency = section.max_concurrent_trials or max(min(places, self.num_trials), 1)
        chains = max(self.config_of(point).tickets.chains for point in self.known or [{}])
        explorers = min(chains, cluster.num_explorers or chains, max(places // concurrency, 1))
        if concurrency * explorers > places:
            raise ValueError(
                f"search.max_concurrent_trials must leave room for every trial's explorers: {concurrency} trials x "
                f"{explorers} explorers x {cluster.cpus_per_worker} CPU and {cluster.gpus_per_worker:g} GPU = "
                f"{concurrency * explorers} places, and the cluster has {places}. Choose fewer trials at once."
            )
        return concurrency, explorers

    def parameters(self, files: SearchFiles, settings: dict[str, Any], explorers: int) -> dict[str, Any]:
        """Returns what every trial is given beside its values."""
        return {
            "recipe": to_dict(self.config),
            "path": files.path,
            "worker": settings,
            "ledger": Ledger.remote(),  # type: ignore[attr-defined]
            "explorers_per_trial": explorers,
        }

    def _phase_one_points(self) -> list[Point]:
        """Points for every phase one that may be needed; refuses a space of which there are endlessly many."""
        found: dict[str, Point] = {}
        for point in listed_points(self.dimensions):
            found.setdefault(phase_one_key(self.config_of(point)), point)
        middle = next(iter(found.values()))
        for key, dimension in self.dimensions.items():
            if dimension.values is None:
                other = {**middle, key: dimension.arguments[1]}
                if phase_one_key(self.config_of(settle(other))) != phase_one_key(self.config_of(middle)):
                    raise ValueError(
                        f"search.space.{key} must be a choice with search.searcher 'optuna': phase one depends on it, "
                        f"and is trained before the trials; got {dimension.kind}. Or use the searcher random."
                    )
        return list(found.values())


def trainable(config: Config) -> Any:
    """Returns a Tune trainable of a recipe, for a `tune.Tuner` of your own with `param_space(config)`.

    Call it on a Ray that runs: it trains the phase ones that the space needs, and trials then share them and all
    tickets, under the recipe's storage and name. It reports validation_accuracy, validation_loss and cyclic_epochs
    after every cycle.

    Raises:
        ValueError: As `tune`.
    """
    config = resolve(config)
    search, files = Search(config), SearchFiles(run_path(config))
    loaded = rehearse(search.config_of(search.known[0]))
    _, explorers = search.places()
    files.store.write("config.yaml", to_yaml(config).encode())
    monitor = Monitor.remote()  # type: ignore[attr-defined]
    settings = worker_settings(config, files.path, monitor, loaded)
    _pretrain_all(search, files, settings, lambda event: None, verbose=False)
    return _sized(config, search.parameters(files, settings, explorers))


def param_space(config: Config) -> dict[str, Any]:
    """Returns the recipe's `search.space` as Ray Tune's own objects."""
    dimensions = parse_space(config.search.space or DEFAULT_SPACE, all_keys())
    return {key: _domain(dimension) for key, dimension in dimensions.items()}


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
    search: Search, files: SearchFiles, settings: dict[str, Any], on_event: OnEvent, verbose: bool
) -> None:
    """Trains every phase one once, one after another: while trials wait for CPUs, Train would wait for theirs."""
    needed = search.phase_ones()
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
    search: Search,
    files: SearchFiles,
    parameters: dict[str, Any],
    concurrency: int,
    monitor: Any,
    on_event: OnEvent,
    verbose: bool,
) -> Any:
    """Runs Ray Tune in a thread of its own, so that Ctrl-C is ours; returns its results."""
    files.store.remove_folder(TUNE_FOLDER)  # an earlier start's; what counts lies beside it
    section, left = search.config.search, _left(search, files)
    algorithm, space, num_samples = None, {"point": ray_tune.grid_search(left)}, 1
    if section.searcher == "optuna":
        algorithm, num_samples = _optuna(search, files)
        space = {}
    if not (left or (algorithm is not None and num_samples)):
        return []
    scheduler = None
    if section.scheduler == "asha":
        longest = max(budget_of(search.config_of(point)).cyclic_epochs for point in search.known) * section.seeds
        shortest = min(search.config_of(point).tickets.cycle_epochs for point in search.known)
        scheduler = ray_tune.schedulers.ASHAScheduler(
            time_attr="cyclic_epochs", max_t=longest + 1, grace_period=shortest, reduction_factor=2
        )
        # max_t: a trial that reaches its last cycle ends by itself, with its result kept.
    filesystem, location = files.store.location
    with _only_our_logger():
        tuner = ray_tune.Tuner(
            _sized(search.config, parameters),
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                metric=search.metric,
                mode=search.mode,
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
        outcome: dict[str, Any] = {}

        def fit() -> None:
            try:
                outcome["grid"] = tuner.fit()
            except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
                outcome["error"] = error

        thread = threading.Thread(target=fit, name="search", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            show_events(monitor, on_event)
    if "error" in outcome:
        raise RuntimeError(f"the search failed: {root_cause(outcome['error'])}") from outcome["error"]
    return outcome["grid"]


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


def _left(search: Search, files: SearchFiles) -> list[Point]:
    """The points that no earlier start has finished."""
    return [point for point in search.points if not _is_finished(search, files, point)]


def _is_finished(search: Search, files: SearchFiles, point: Point) -> bool:
    return all(files.row(point, number) is not None for number in range(search.config.search.seeds))


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "search.searcher 'optuna' must have the package optuna; it is missing. Install suptickets-ray[optuna]."
        ) from error


def _optuna(search: Search, files: SearchFiles) -> tuple[Any, int]:
    """Optuna's searcher, told what earlier starts have found, and how many trials are left."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points, rewards = [], []
    for point, seeds in files.points():
        if len(seeds) == search.config.search.seeds:
            points.append({key: value for key, value in point.items() if key in search.dimensions})
            rewards.append(sum(row[search.metric] for row in seeds) / len(seeds))
    space = {
        # Optuna's own: a grid is to it a choice like any other.
        key: ray_tune.choice(list(dimension.values)) if dimension.values is not None else _domain(dimension)
        for key, dimension in search.dimensions.items()
    }
    known = {"points_to_evaluate": points, "evaluated_rewards": rewards} if points else {}
    searcher = OptunaSearch(space, metric=search.metric, mode=search.mode, seed=search.config.seed, **known)
    return searcher, max(search.num_trials - len(points), 0)


def _rows(search: Search, files: SearchFiles, grid: Any) -> list[dict[str, Any]]:
    """A line for every trial, in the order of the points."""
    errors, points = {}, {point_key(point): point for point in search.points}
    for result in grid:
        point = settle(result.config.get("point", result.config))
        points.setdefault(point_key(point), point)
        errors[point_key(point)] = result.error
    for point, _ in files.points():  # of earlier starts, where Optuna chose them
        points.setdefault(point_key(point), point)
    rows = []
    for number, (key, point) in enumerate(points.items()):
        seeds = [row for index in range(search.config.search.seeds) if (row := files.row(point, index)) is not None]
        state, error = "complete", None
        if len(seeds) < search.config.search.seeds:
            error = root_cause(errors[key]) if errors.get(key) is not None else None
            state, seeds = "failed" if error else "stopped", [files.running(point)]
        rows.append(trial_row(number, point, seeds, search.metric, state) | {"error": error})
    return rows


def _conclude(search: Search, files: SearchFiles, rows: Sequence[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    """Reads the test set for the winner alone, and writes the answer."""
    best_first = ranked(rows, search.metric, search.mode)
    if not best_first:
        failed = next((row["error"] for row in rows if row["error"]), "none reached its end")
        raise RuntimeError(f"no trial was complete: {failed}. The same command goes on from what is finished.")
    winner = best_first[0]
    point = winner["values"]
    config = replace(search.config_of(point), name=f"{search.config.name}-best")
    tests = _test_scores(search, files, point)
    warnings = [*search.warnings(), *filter(None, [noise_warning(best_first, search.metric)])]
    if failed_rows := [row for row in rows if row["state"] == "failed"]:
        warnings.append(f"{len(failed_rows)} trials failed, the first one of: {failed_rows[0]['error']}")
    result: dict[str, Any] = {
        "state": "complete",
        "name": search.config.name,
        "metric": search.metric,
        "mode": search.mode,
        "trials": list(rows),
        "best": {
            "trial": winner["trial"],
            "values": point,
            "validation_accuracy": winner["validation_accuracy"],
            "validation_loss": winner["validation_loss"],
            "accuracy": sum(test["accuracy"] for test in tests) / len(tests),
            "loss": sum(test["loss"] for test in tests) / len(tests),
            "digest": winner["digest"],
        },
        "pretrainings": files.num_pretrainings(),
        "cycles_trained": files.num_cycles(),
        "warnings": warnings,
        "seconds": clock.seconds(),
        "versions": versions(),
        "config": to_dict(search.config),
        "config_digest": config_digest(search.config),
    }
    result = without_nan(result)
    trials = [{**row, "name": f"trial-{point_key(row['values'])}"} for row in result["trials"]]
    trials[winner["trial"]]["accuracy"] = result["best"]["accuracy"]
    write_hparams(files.tensorboard, trials, (*SCORES, "accuracy"))
    files.store.write("best.yaml", to_yaml(config).encode())
    files.store.write("trials.parquet", to_parquet(rows))
    files.store.write("report.html", render_search(result).encode())
    files.store.write("result.json", json.dumps(result, indent=2).encode())
    return result


def _test_scores(search: Search, files: SearchFiles, point: Point) -> list[dict[str, float]]:
    scores = []
    for number in range(search.config.search.seeds):
        config = search.config_of(point, number)
        with arithmetic_of(config):
            scores.append(evaluate_ticket(config, load_data(config.data), files.superposed(point, number)))
    return scores


def _finished(files: SearchFiles, config: Config) -> dict[str, Any] | None:
    """The result of this very search if it is done, None if it was interrupted or never started.

    Raises:
        ValueError: If the folder holds another search or a run.
    """
    if not files.store.exists("config.yaml"):
        return None
    old = from_yaml(files.store.read("config.yaml").decode())
    keys = differing_keys(old, config)
    if old.search != config.search:
        keys.append("search")
    if keys or files.store.exists("superposed.arrow"):
        raise ValueError(
            f"the configuration must be that of the search in {files.path}; these keys differ: "
            f"{', '.join(keys) or 'it holds a run'}. Choose another name=, or set them back to go on with that search."
        )
    if not files.store.exists("result.json"):
        return None
    result: dict[str, Any] = json.loads(files.store.read("result.json"))
    return result
