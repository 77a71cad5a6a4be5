import pytest

from suptickets_ray import load_config
from suptickets_ray.recipes.declarations import all_keys
from suptickets_ray.search.points import (
    config_of,
    draw_points,
    listed_points,
    new_keys_first,
    normalize_point,
    point_key,
)
from suptickets_ray.search.space import DEFAULT_SPACE, default_space, parse_space
from suptickets_ray.training.loop import budget_of

KEYS = all_keys()


def drawn(space, searcher="random", num_trials=None, seed=0):
    return draw_points(parse_space(space, KEYS), searcher, num_trials, seed, "cia")


def test_the_default_space_is_the_papers_ablation():
    points = drawn(DEFAULT_SPACE)
    assert len(points) == 20
    assert {point["tickets.cycle_epochs"] for point in points} == {2, 4, 8, 12}
    assert {point["superposition.cima_factor"] for point in points} == {0.1, 0.2, 0.5, 0.8, 0.9}
    assert {point["superposition.method"] for point in points} == {"cima"}


def test_a_factor_goes_with_its_own_method_alone_and_equal_points_are_one():
    methods = {"grid_search": ["cia", "caa", "cima"]}
    points = drawn({"superposition.method": methods, "superposition.cima_factor": {"grid_search": [0.2, 0.8]}})
    assert points == [
        {"superposition.method": "cia"},
        {"superposition.method": "caa"},
        {"superposition.method": "cima", "superposition.cima_factor": 0.2},
        {"superposition.method": "cima", "superposition.cima_factor": 0.8},
    ]


@pytest.mark.parametrize(
    ("domain", "holds"),
    [
        ({"uniform": [0.1, 0.9]}, lambda value: 0.1 <= value <= 0.9),
        ({"loguniform": [0.001, 1]}, lambda value: 0.001 <= value <= 1),
        ({"quniform": [0.2, 0.8, 0.2]}, lambda value: min(abs(value - x) for x in (0.2, 0.4, 0.6, 0.8)) < 1e-9),
        ({"choice": [0.1, 0.3]}, lambda value: value in (0.1, 0.3)),
    ],
)
def test_values_are_drawn_as_tune_draws_them_and_the_same_seed_draws_the_same(domain, holds):
    points = drawn({"train.lr": domain}, num_trials=30)
    assert points == drawn({"train.lr": domain}, num_trials=30)
    assert points != drawn({"train.lr": domain}, num_trials=30, seed=1) or len(points) == 2
    assert all(holds(point["train.lr"]) for point in points), points
    assert len(points) > 1


def test_randint_leaves_its_upper_bound_out():
    values = {
        point["tickets.num_chains"] for point in drawn({"tickets.num_chains": {"randint": [2, 5]}}, num_trials=60)
    }
    assert values == {2, 3, 4}


def test_random_values_meet_the_grid_in_turn():
    space = {"tickets.cycle_epochs": {"grid_search": [2, 4]}, "superposition.cima_factor": {"uniform": [0.1, 0.9]}}
    points = drawn(space, num_trials=5)
    assert [point["tickets.cycle_epochs"] for point in points] == [2, 4, 2, 4, 2]
    assert len({point["superposition.cima_factor"] for point in points}) == 5


def test_a_grid_takes_choices_too_and_num_trials_cuts_it():
    space = {"train.lr": {"choice": [0.1, 0.2]}, "tickets.num_chains": {"grid_search": [1, 2]}}
    assert len(drawn(space, "grid")) == 4
    assert len(drawn(space, "grid", num_trials=3)) == 3


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ({}, {}, "search.space must contain at least one key"),
        ({"tickets.cycle_epoch": {"choice": [1]}}, {}, "did you mean 'tickets.cycle_epochs'"),
        ({"seed": {"choice": [1]}}, {}, "got 'seed'.*search.num_seeds"),
        ({"train.lr": {"unifrom": [1, 2]}}, {}, "unknown kind of search.space.train.lr 'unifrom'; did you mean 'unif"),
        ({"train.lr": [0.1]}, {}, "search.space.train.lr must be one of grid_search"),
        ({"train.lr": {"uniform": [2, 1]}}, {}, r"must be \[low, high\] with low below high; got \[2, 1\]"),
        ({"train.lr": {"quniform": [1, 2]}}, {}, r"must be \[low, high, step\]"),
        ({"train.lr": {"quniform": [0.1, 0.9, 0.2]}}, {}, "must have bounds that are multiples of its step"),
        ({"train.lr": {"loguniform": [0, 1]}}, {}, "must be above 0"),
        ({"train.lr": {"choice": []}}, {}, "must be a list of values or bounds"),
        ({"tickets.num_chains": {"randint": [1.5, 3]}}, {}, "must be whole numbers"),
        ({"train.lr": {"uniform": [1, 2]}}, {"searcher": "grid"}, "must have finite dimensions only"),
        ({"train.lr": {"uniform": [1, 2]}}, {}, "search.num_trials must be given"),
        ({"train.lr": {"choice": [0.1, 0.2]}}, {"searcher": "grid", "num_trials": 3}, "at most 2, the points of"),
        (
            {"tickets.num_chains": {"grid_search": [1, 2]}},
            {"num_trials": 50},
            "num_trials must be at most 2, .*; got 50",
        ),
    ],
)
def test_what_is_no_space_is_refused(space, settings, message):
    with pytest.raises(ValueError, match=message):
        drawn(space, **settings)


@pytest.mark.parametrize(
    "key", ["data.name", "data.options.noise", "data.split_seed", "data.root", "data.download", "data.validation_share"]
)
def test_all_points_are_judged_on_the_same_data(key):
    with pytest.raises(ValueError, match=f"must not change the data.*one validation set; got '{key}'"):
        drawn({key: {"choice": [1, 2]}}, num_trials=2)


@pytest.mark.parametrize("key", ["task.name", "task.options.loss"])
def test_all_points_are_judged_by_the_metric_of_one_task(key):
    with pytest.raises(ValueError, match=f"must not change the task.*its metric; got '{key}'"):
        drawn({key: {"choice": [1, 2]}}, num_trials=2)


@pytest.mark.parametrize("key", ["data.batch_size", "data.num_train_examples", "data.label_noise", "data.crop_padding"])
def test_what_training_does_with_the_data_may_be_searched(key):
    assert len(drawn({key: {"grid_search": [1, 2]}})) == 2


@pytest.mark.parametrize("key", ["train.checkpoint_every_epochs", "data.reader_threads"])
def test_what_changes_no_result_is_no_search(key):
    with pytest.raises(ValueError, match=f"must contain settings that change results; got '{key}'"):
        drawn({key: {"grid_search": [1, 2]}})


def test_a_random_search_of_a_grid_does_not_begin_in_its_first_corner():
    for seed in (0, 1):
        assert len({point["tickets.cycle_epochs"] for point in drawn(DEFAULT_SPACE, num_trials=5, seed=seed)}) > 1
    assert drawn(DEFAULT_SPACE, num_trials=5) == drawn(DEFAULT_SPACE, num_trials=5)
    assert drawn(DEFAULT_SPACE, num_trials=5) != drawn(DEFAULT_SPACE, num_trials=5, seed=1)
    mixed = {**DEFAULT_SPACE, "train.lr": {"uniform": [0.1, 0.9]}}
    assert len({point["tickets.cycle_epochs"] for point in drawn(mixed, num_trials=5)}) > 1


@pytest.mark.parametrize(
    ("epochs", "rate", "rates"),
    [
        (150, 0.1, [0.16]),  # 15 epochs become 24
        (145, 0.1, [0.165518]),
        (400, 0.1, [0.12]),  # 40 are nearer to 48 than to 24
        (250, 0.1, None),  # 24 and 1 that pretraining gets, whatever the length
        (240, 0.1, None),
    ],
)
def test_the_built_in_space_gives_every_cycle_length_the_same_epochs(epochs, rate, rates):
    base = load_config(None, [f"train.epochs={epochs}", f"tickets.cycle_rate={rate}"])
    space = default_space(base)
    assert space.get("tickets.cycle_rate") == (rates and {"grid_search": rates})
    budgets = {budget_of(config_of(base, point)) for point in drawn(space)}
    assert len({budget.cyclic_epochs for budget in budgets}) == 1
    assert len({budget.pretrain_epochs for budget in budgets}) == 1


def test_the_built_in_space_needs_epochs_beside_its_cycles():
    with pytest.raises(ValueError, match="train.epochs must be above 24 for the built-in search.space; got 24"):
        default_space(load_config(None, ["train.epochs=24", "tickets.cycle_epochs=2"]))


def test_a_point_is_a_recipe_under_each_seed():
    base = load_config(None, ["seed=7"])
    config = config_of(base, {"tickets.cycle_epochs": 3, "superposition.method": "cima"}, 2)
    assert (config.seed, config.tickets.cycle_epochs, config.superposition.cima_factor) == (9, 3, 0.2)


def test_what_the_recipe_left_out_is_filled_in_for_each_point():
    base = load_config(None, ["method.name=granet"])
    assert base.method.prune_end_epoch == 67
    assert config_of(base, {"train.epochs": 100}) == load_config(None, ["method.name=granet", "train.epochs=100"])
    assert config_of(base, {"train.epochs": 50}).method.prune_end_epoch == 22
    assert config_of(base, {}) == base


def test_what_the_recipe_chose_stays_in_each_point():
    base = load_config(None, ["method.name=granet", "method.prune_end_epoch=50", "superposition.gate_tolerance=none"])
    point = config_of(base, {"train.epochs": 100})
    assert (point.method.prune_end_epoch, point.superposition.gate_tolerance) == (50, None)
    with pytest.raises(ValueError, match="method.prune_end_epoch must be at most 45"):
        config_of(base, {"train.epochs": 50})


def test_a_point_that_is_no_recipe_is_named():
    with pytest.raises(ValueError, match="Cannot use the point tickets.cycle_epochs=100 of search.space: "):
        config_of(load_config(None), {"tickets.cycle_epochs": 100})


def test_points_that_explore_something_new_come_first():
    points = [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 2, "b": 2}]
    assert new_keys_first(points, lambda point: point["a"]) == [points[0], points[2], points[1], points[3]]


def test_equal_points_have_equal_keys_whatever_the_order_of_their_values():
    assert point_key({"a": 1, "b": 2}) == point_key({"b": 2, "a": 1})
    assert point_key({"a": 1}) != point_key({"a": 2})


def test_listed_points_stand_for_every_choice():
    space = parse_space(
        {"tickets.num_chains": {"choice": [1, 2]}, "superposition.cima_factor": {"uniform": [0.1, 1]}}, KEYS
    )
    assert [(p["tickets.num_chains"], p["superposition.cima_factor"]) for p in listed_points(space, "cia")] == [
        (1, 0.1),
        (2, 0.1),
    ]
    assert normalize_point({"tickets.num_chains": 1}, "cia") == {"tickets.num_chains": 1}


@pytest.mark.parametrize(
    ("own", "method"), [("cia", "cima"), ("caa", "cima"), ("cima", "cima"), ("mine:average", "mine:average")]
)
def test_a_factor_means_cima_unless_the_recipes_own_average_reads_it(own, method):
    assert normalize_point({"superposition.cima_factor": 0.3}, own)["superposition.method"] == method


def test_a_factor_stays_with_the_methods_that_read_it():
    for method, stays in (("cima", True), ("mine:average", True), ("cia", False), ("caa", False)):
        point = {"superposition.method": method, "superposition.cima_factor": 0.3}
        assert ("superposition.cima_factor" in normalize_point(point, "cia")) == stays
