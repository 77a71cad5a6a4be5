import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suptickets_ray.sparse import layer_densities
from suptickets_ray.sparse.distributions import apportion, layer_counts, random_masks

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "A_erk_densities.json").read_text())
CASES = [(model, case["density"]) for model, entry in RECORDED.items() for case in entry["cases"]]


@pytest.mark.parametrize(("model", "density"), CASES)
def test_erk_gives_the_recorded_densities(model, density):
    entry = RECORDED[model]
    shapes = dict(entry["layers"])
    case = next(case for case in entry["cases"] if case["density"] == density)
    assert list(layer_densities(shapes, density).values()) == pytest.approx(case["layer_density"], rel=1e-9)


def test_erk_by_hand():
    # sum/prod: 4x4 gives 8/16, 8x8 gives 16/64; densities in the ratio 2 : 1, and 16 * 2x + 64 * x = 0.25 * 80.
    assert layer_densities({"a": (4, 4), "b": (8, 8)}, 0.25) == pytest.approx({"a": 5 / 12, "b": 5 / 24})


def test_an_over_full_layer_becomes_dense_and_the_rest_is_rescaled():
    densities = layer_densities({"small": (2, 2), "large": (20, 20)}, 0.2)
    assert densities["small"] == 1.0
    assert densities["large"] == pytest.approx((0.2 * 404 - 4) / 400)


def test_uniform_gives_every_layer_the_same():
    assert layer_densities({"a": (4, 4), "b": (8, 8)}, 0.3, "uniform") == {"a": 0.3, "b": 0.3}


def test_an_unknown_distribution_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="unknown distribution 'erkk'; did you mean 'erk'"):
        layer_densities({"a": (4, 4)}, 0.3, "erkk")


def test_a_layer_that_would_be_empty_keeps_a_connection_and_that_is_said():
    with pytest.warns(UserWarning, match="would leave a empty; each keeps a connection"):
        assert apportion({"a": 0.1, "b": 4.9}, {"a": 10, "b": 10}, 5) == {"a": 1, "b": 4}


@pytest.mark.parametrize(
    ("quotas", "total", "expected"),
    [
        ({"a": 2.5, "b": 2.5}, 5, [3, 2]),
        ({"a": 2.4, "b": 2.6}, 5, [2, 3]),
        ({"a": 8.9, "b": 1.1}, 10, [9, 1]),
        ({"a": 12.0, "b": 2.0}, 14, [10, 4]),
    ],
)
def test_what_is_missing_goes_to_the_largest_remainders(quotas, total, expected):
    assert list(apportion(quotas, {"a": 10, "b": 10}, total).values()) == expected


def test_fewer_connections_than_layers_are_refused():
    with pytest.raises(ValueError, match="so that every layer keeps one; got 1"):
        apportion({"a": 0.5, "b": 0.5}, {"a": 10, "b": 10}, 1)


shapes_strategy = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5)


@pytest.mark.filterwarnings("ignore:the density would leave")
@given(shapes_strategy, st.floats(0.05, 1), st.sampled_from(["erk", "uniform"]))
def test_layer_counts_hold_the_density_exactly_and_empty_no_layer(shape_list, density, distribution):
    shapes = {f"layer{index}": shape for index, shape in enumerate(shape_list)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = math.floor(density * sum(sizes.values()) + 1e-9)
    if total < len(shapes):
        return
    counts = layer_counts(shapes, density, distribution)
    assert sum(counts.values()) == total
    assert all(1 <= counts[name] <= sizes[name] for name in shapes)


def test_random_masks_have_exact_counts_and_follow_the_generator():
    def draw(seed):
        return random_masks({"a": 7, "b": 1}, {"a": (4, 5), "b": (2, 2)}, torch.Generator().manual_seed(seed))

    assert [int(mask.sum()) for mask in draw(0).values()] == [7, 1]
    assert torch.equal(draw(0)["a"], draw(0)["a"])
    assert not torch.equal(draw(0)["a"], draw(1)["a"])
