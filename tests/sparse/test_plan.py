"""Decisions about steps, without a model."""

import pytest

from suptickets_ray.sparse.plan import Plan


def plan(method="rigl", density=0.25, total_steps=24, keep_updating=False, **recipe):
    return Plan(
        method,
        {"update_interval_steps": 3} | recipe,
        density=density,
        total_steps=total_steps,
        keep_updating=keep_updating,
    )


def test_exchanges_come_at_multiples_of_the_interval_until_the_methods_end():
    assert [step for step in range(1, 40) if plan().exchanges_at(step)] == [3, 6, 9, 12, 15, 18]
    going_on = plan(keep_updating=True)
    assert [step for step in range(19, 34) if going_on.exchanges_at(step)] == [27, 30, 33]


def test_pruning_follows_the_cubic_in_its_window_and_ends_on_the_target():
    gmp = plan("gmp", prune_start_fraction=0.25, prune_end_fraction=0.5)
    assert [step for step in range(1, 30) if gmp.prunes_at(step)] == [6, 9, 12]
    assert [gmp.density_at(step) for step in (3, 6, 9, 12)] == pytest.approx([1.0, 1.0, 0.25 + 0.75 / 8, 0.25])
    assert (gmp.initial_density, plan("granet").initial_density, plan().initial_density) == (1.0, 0.5, 0.25)


def test_dense_gradients_are_needed_to_exchange_by_them_and_always_for_momentum():
    def needed(**recipe):
        return [step for step in range(1, 8) if plan(**recipe).needs_dense_gradients_at(step)]

    assert needed() == [3, 6]
    assert needed(grow="random") == []
    assert needed(grow="random", drop="mest") == [3, 6]
    assert needed(grow="momentum") == [1, 2, 3, 4, 5, 6, 7]
    assert needed(method="gmp") == []


def test_the_fraction_follows_its_schedule():
    assert plan(drop_fraction_schedule="constant").fraction_at(9) == 0.3
    assert plan(drop_fraction_schedule="linear").fraction_at(24) == pytest.approx(0.005)
    assert plan(drop_fraction_schedule="linear").fraction_at(12) == pytest.approx(0.1525)
    assert plan().fraction_at(12) == pytest.approx(0.1525)


def test_a_structured_start_that_is_pruned_later_is_refused():
    with pytest.raises(ValueError, match="must not be structured with a method that prunes single weights later"):
        plan("granet", distribution="prune_structured")


@pytest.mark.parametrize("method", ["granet", "granet_uniform"])
@pytest.mark.parametrize(("start", "first"), [(0.0, 3), (0.25, 6), (0.3, 9)])
def test_granet_changes_nothing_before_its_prune_window_opens(method, start, first):
    granet = plan(method, prune_start_fraction=start, prune_end_fraction=0.5)
    due = [step for step in range(1, 25) if granet.is_due(step)]
    assert due == list(range(first, 25, 3))
    assert granet.prunes_at(first) and granet.exchanges_at(first)
    assert granet.exchanges_after(0)
