from pathlib import Path

import numpy as np
import pytest

from suptickets_ray.sparse import cosine_fraction, cubic_density
from suptickets_ray.sparse.schedules import drop_fraction

RECORDED = np.load(Path(__file__).parents[1] / "golden" / "G1_prune_rate_decay.npz")


def test_cubic_density_by_hand():
    assert [cubic_density(update, 0, 4, 1.0, 0.2) for update in (-1, 0, 2, 4, 9)] == pytest.approx(
        [1.0, 1.0, 0.2 + 0.8 * 0.125, 0.2, 0.2]
    )


def test_the_last_update_lands_on_the_target_exactly():
    assert cubic_density(7, 0, 7, 1.0, 0.1) == 0.1


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="must come after the first; got 3 and 3"):
        cubic_density(0, 3, 3, 1.0, 0.1)


@pytest.mark.parametrize("key", [key for key in RECORDED if key.startswith("cifar_cosine")])
def test_cosine_fraction_follows_the_recorded_curve(key):
    initial, total = (float(part.strip("rateT")) for part in key.split("/")[1].split("_"))
    computed = [cosine_fraction(step, int(total), initial) for step in range(int(total) + 1)]
    assert computed == pytest.approx(RECORDED[key][: int(total) + 1].tolist(), abs=1e-9)


def test_cosine_fraction_stays_at_its_minimum():
    assert cosine_fraction(150, 100, 0.3) == cosine_fraction(100, 100, 0.3) == pytest.approx(0.005)


def test_constant_fraction_does_not_change():
    assert drop_fraction("constant", 77, 100, 0.3) == 0.3
