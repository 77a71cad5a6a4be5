import pytest

from suptickets_ray import load_config
from suptickets_ray.search.keys import exploration_key, pretraining_key

BASE = ["train.epochs=240", "tickets.cycle_rate=0.1", "tickets.cycle_epochs=8"]


def keys(*overrides):
    config = load_config(None, [*BASE, *overrides])
    return pretraining_key(config), exploration_key(config)


@pytest.mark.parametrize(
    "override",
    [
        "superposition.method=caa",
        "superposition.prune_at=every_ticket",
        "superposition.gate_tolerance=none",
        "tickets.num_chains=9",
        "search.num_seeds=3",
        "name=other",
        "cluster.num_explorers=1",
    ],
)
def test_what_changes_no_ticket_shares_pretraining_and_tickets(override):
    assert keys(override) == keys()


@pytest.mark.parametrize(
    "override",
    ["tickets.cycle_epochs=4", "tickets.lr_high=0.1", "tickets.exploration_fraction=0.3", "tickets.explore=false"],
)
def test_what_changes_cycles_alone_shares_pretraining(override):
    pretraining, exploration = keys(override)
    assert pretraining == keys()[0]
    assert exploration != keys()[1]


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "train.lr=0.2",
        "method.density=0.2",
        "model.options.widths=[64]",
        "data.label_noise=0",
        "train.epochs=250",
    ],
)
def test_what_changes_pretraining_shares_nothing(override):
    pretraining, exploration = keys(override)
    assert pretraining != keys()[0]
    assert exploration != keys()[1]


def test_cycle_lengths_that_divide_the_budget_share_pretraining_and_others_do_not():
    assert len({keys(f"tickets.cycle_epochs={length}")[0] for length in (2, 4, 8, 12)}) == 1
    assert keys("tickets.cycle_epochs=5")[0] != keys("tickets.cycle_epochs=4")[0]


def test_more_cycles_after_the_same_pretraining_share_tickets():
    longer = keys("train.epochs=246", "tickets.cycle_rate=0.122", "tickets.cycle_epochs=5")
    shorter = keys("train.epochs=236", "tickets.cycle_rate=0.085", "tickets.cycle_epochs=5")
    assert longer == shorter
