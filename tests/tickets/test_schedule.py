from pathlib import Path

import numpy as np
import pytest

from suptickets_ray import plan_budget, triangular
from suptickets_ray.tickets.schedule import Budget, canonical_order

RECORDED = np.load(Path(__file__).parents[1] / "golden" / "B_cyclic_lr.npz")


@pytest.mark.parametrize(
    ("epochs", "cycle_epochs", "rate", "expected"),
    [
        (250, 8, 0.1, Budget(226, 8, 3)),
        (100, 2, 0.08, Budget(92, 2, 4)),
        (150, 5, 0.1, Budget(135, 5, 3)),
        (10, 1, 0.3, Budget(7, 1, 3)),  # 10 * 0.3 is 3 in decimal, 3.0000000000000004 / 2.9999999999999996 in floats
        (100, 29, 0.29, Budget(71, 29, 1)),  # 100 * 0.29 is 28.999999999999996 in floats
    ],
)
def test_the_budget_is_exact(epochs, cycle_epochs, rate, expected):
    assert plan_budget(epochs, cycle_epochs, rate) == expected


@pytest.mark.parametrize(
    ("epochs", "cycle_epochs", "rate", "message"),
    [
        (10, 8, 0.1, r"tickets.cycle_epochs must be at most train.epochs \* tickets.cycle_rate = 1"),
        (10, 2, 1.0, r"tickets.cycle_rate must be in \(0, 1\); got 1.0"),
        (0, 2, 0.1, "train.epochs must be at least 1; got 0"),
        (10, 0, 0.1, "tickets.cycle_epochs must be at least 1; got 0"),
    ],
)
def test_an_impossible_budget_is_refused(epochs, cycle_epochs, rate, message):
    with pytest.raises(ValueError, match=message):
        plan_budget(epochs, cycle_epochs, rate)


def test_the_triangle_by_eye():
    assert [triangular(t, 1.0, 3.0) for t in (0, 0.25, 0.5, 0.75)] == [1.0, 2.0, 3.0, 2.0]


def test_the_triangle_follows_the_recorded_rates():
    r = RECORDED
    progress = ((r["epoch"] % r["cycle"]) + r["num"] / r["den"]) / r["cycle"]
    computed = [triangular(t, low, high) for t, low, high in zip(progress, r["lr_1"], r["lr_2"], strict=True)]
    assert computed == pytest.approx(r["lr"].tolist(), rel=1e-9, abs=1e-12)


def test_tickets_are_merged_cycle_by_cycle_and_within_it_by_chain():
    assert list(canonical_order(2, 3)) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
