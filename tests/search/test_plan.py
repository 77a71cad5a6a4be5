import pytest

from suptickets_ray import load_config
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.plan import SearchPlan
from suptickets_ray.search.points import point_key
from suptickets_ray.tickets.ticket import Ticket

LENGTHS = "search.space={tickets.cycle_epochs: {grid_search: [2, 4]}}"


def plan(*settings, **options):
    return SearchPlan(load_config(None, ["train.epochs=40", "tickets.cycle_epochs=2", *settings]), **options)


def test_what_others_draw_must_not_need_pretrainings_without_end():
    wide = "search.space={train.lr: {uniform: [0.1, 0.9]}}"
    with pytest.raises(ValueError, match="search.space.train.lr must be a choice with a user-defined Tuner, because"):
        plan(wide, custom_tuner=True)
    with pytest.raises(ValueError, match="search.space.train.lr must be a choice with search.searcher 'optuna'"):
        plan(wide, "search.searcher=optuna", "search.num_trials=4")
    choices = "search.space={train.lr: {choice: [0.1, 0.9]}, superposition.cima_factor: {uniform: [0.1, 0.9]}}"
    own = plan(choices, custom_tuner=True)  # Tune draws them: no number of trials is needed
    assert len(own.pretrainings()) == 2


def test_pretrainings_are_looked_for_at_every_point_that_others_may_draw():
    # Of 240 epochs cycles of 8 get 24 at either rate, cycles of 2 get 24 or 30: another pretraining.
    space = "search.space={tickets.cycle_epochs: {choice: [8, 2]}, tickets.cycle_rate: {uniform: [0.1, 0.13]}}"
    with pytest.raises(ValueError, match="search.space.tickets.cycle_rate must be a choice"):
        plan("train.epochs=240", space, custom_tuner=True)


def test_what_others_may_draw_is_known_with_its_most_chains():
    own = plan("search.space={tickets.num_chains: {choice: [1, 8]}}", custom_tuner=True)
    assert max(own.config_of(point).tickets.num_chains for point in own.known) == 8
    assert len(own.pretrainings()) == 1


@pytest.mark.parametrize(("method", "said"), [("caa", True), ("cia", False), ("greedy", True)])
def test_a_factor_that_means_another_superposition_than_the_recipes_is_said(method, said):
    factors = "search.space={superposition.cima_factor: {grid_search: [0.1, 0.9]}}"
    found = plan(factors, f"superposition.method={method}").warnings()
    assert any("superposition.method is cima in all trials" in text for text in found) == said


def test_a_merge_in_shares_is_said_to_do_nothing_in_a_search():
    settings = ["cluster.num_merge_shards=2", "superposition.gate_tolerance=none"]
    assert any("cluster.num_merge_shards has no effect" in text for text in plan(LENGTHS, *settings).warnings())


def test_fewer_different_points_than_trials_are_said():
    few = plan("search.space={tickets.lr_high: {choice: [0.1, 0.2]}}", "search.num_trials=30")
    assert any("search.num_trials is 30, but only 2 distinct points were drawn" in text for text in few.warnings())
    assert not plan(LENGTHS).warnings()


def test_a_built_in_space_that_moves_epochs_says_so():
    (said,) = plan("train.epochs=150").warnings()
    assert "tickets.cycle_rate is 0.16 instead of 0.1" in said
    assert (
        plan("train.epochs=150").pretrainings().keys()
        == plan("train.epochs=150", custom_tuner=True).pretrainings().keys()
    )
    assert len(plan("train.epochs=150").pretrainings()) == 1


def test_what_failed_is_left_and_what_was_stopped_is_not(tmp_path):
    search = plan("search.space={tickets.lr_high: {grid_search: [0.1, 0.2, 0.3]}}")
    files = SearchFiles(str(tmp_path), search.config)
    done, failed, stopped = search.points
    files.write_row(done, 0, {"point": done, "finished": 1.0}, Ticket({}, {}, {}))
    assert search.unfinished(files) == [failed, stopped]
    trials = [{"values": done, "state": "complete"}, {"values": failed, "state": "failed"}]
    earlier = {"trials": [*trials, {"values": stopped, "state": "stopped"}]}
    assert search.unfinished(files, earlier) == [failed]
    assert point_key(done) != point_key(failed)
    files.write_running(stopped, {"validation_accuracy": 0.1})
    assert search.unfinished(files) == [failed, stopped]
    files.mark_stopped(stopped)  # by a search that was killed afterwards
    assert search.unfinished(files) == [failed]
    assert files.running(stopped)["validation_accuracy"] == 0.1
