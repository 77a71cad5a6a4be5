"""What Optuna is told, and what the recipe means in Tune's own objects; no Ray is started."""

import math
from dataclasses import replace

import pytest

from suptickets_ray import load_config
from suptickets_ray.distributed.tune.searcher import early_stopping, optuna_searcher, tune_space
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.plan import SearchPlan
from suptickets_ray.search.points import normalize_point
from suptickets_ray.tickets.ticket import Ticket

SMALL = ["train.epochs=40", "tickets.cycle_epochs=2"]
CONDITIONAL = (
    "search.space={superposition.method: {choice: [cia, cima]}, superposition.cima_factor: {uniform: [0.1, 0.9]}}"
)


@pytest.fixture
def search(tmp_path):
    config = load_config(None, [*SMALL, CONDITIONAL, "search.searcher=optuna", "search.num_trials=9"])
    return SearchPlan(config), SearchFiles(str(tmp_path), config)


def keep(files, suggested, accuracy=0.5):
    point = normalize_point(suggested, "cia")
    row = {"point": point, "suggested": suggested, "finished": 1.0, "validation_accuracy": accuracy}
    files.write_row(point, 0, row, Ticket({}, {}, {}))


def told(searcher):
    return [(trial.params, trial.value) for trial in searcher._ot_study.trials]


def test_a_search_over_a_conditional_space_goes_on_after_a_kill(search):
    plan, files = search
    shortened = {"superposition.method": "cia", "superposition.cima_factor": 0.3}
    whole = {"superposition.method": "cima", "superposition.cima_factor": 0.7}
    keep(files, shortened)
    keep(files, whole, 0.6)
    searcher, num_left = optuna_searcher(plan, files, None)
    assert num_left == 7
    assert sorted(told(searcher), key=lambda trial: trial[1]) == [(shortened, 0.5), (whole, 0.6)]
    assert set(searcher.suggest("next")) == set(whole)


def test_what_says_nothing_to_optuna_counts_all_the_same(search):
    plan, files = search
    keep(files, {"superposition.method": "cima", "superposition.cima_factor": 0.7}, math.nan)
    keep(files, {"superposition.method": "cia"})  # of a version that did not keep what was suggested
    stopped = {"values": {"superposition.method": "cima", "superposition.cima_factor": 0.2}, "state": "stopped"}
    searcher, num_left = optuna_searcher(plan, files, {"trials": [stopped]})
    assert (told(searcher), num_left) == ([], 6)


def test_asha_runs_by_epochs_of_cycles_over_all_seeds():
    settings = [*SMALL, "search.num_seeds=3", "search.space={tickets.cycle_epochs: {grid_search: [1, 2]}}"]
    assert early_stopping(SearchPlan(load_config(None, settings))) is None
    found = early_stopping(SearchPlan(load_config(None, [*settings, "search.scheduler=asha"])))
    assert (found._max_t, found._time_attr) == (13, "cyclic_epochs")


def test_every_kind_of_space_is_one_of_tunes():
    space = {
        "train.lr": {"loguniform": [0.1, 1]},
        "tickets.num_chains": {"randint": [1, 4]},
        "tickets.cycle_epochs": {"grid_search": [1, 2]},
        "superposition.cima_factor": {"quniform": [0.2, 0.8, 0.2]},
    }
    config = load_config(None, ["train.epochs=40", "tickets.cycle_epochs=2", "search.num_trials=2"])
    plan = SearchPlan(replace(config, search=replace(config.search, space=space)))
    assert set(tune_space(plan.dimensions)) == set(space)
