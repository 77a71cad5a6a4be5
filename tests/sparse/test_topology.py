from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suptickets_ray.sparse import drop_and_grow, prune_to_density
from suptickets_ray.sparse.criteria import DROP_SCORES, GROW_SCORES, REDISTRIBUTIONS
from suptickets_ray.sparse.masks import num_active
from suptickets_ray.sparse.topology import prune_layers

RECORDED = np.load(Path(__file__).parents[1] / "golden" / "E1_truncate_float64.npz")


def one(values):
    return {"w": torch.tensor(values, dtype=torch.float32)}


def mask_of(values):
    return {"w": torch.tensor(values, dtype=torch.bool)}


def bits(masks):
    return masks["w"].int().tolist()


@pytest.mark.parametrize(
    ("weights", "mask", "gradients", "fraction", "expected"),
    [
        # the smallest of four active is dropped, the largest gradient off the mask is grown
        ([4, -3, 2, -1, 0, 0], [1, 1, 1, 1, 0, 0], [9, 9, 9, 0, 1, -2], 0.25, [1, 1, 1, 0, 0, 1]),
        # what was just dropped may return
        ([4, -3, 2, -1, 0, 0], [1, 1, 1, 1, 0, 0], [9, 9, 9, 5, 1, -2], 0.25, [1, 1, 1, 1, 0, 0]),
        # ceil(0.3 * 4) = 2 are dropped; equal weights: the lower index stays
        ([1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], 0.3, [1, 1, 0, 0, 1, 1]),
        # all gradients 0: exact count, lower index first, never an active position twice
        ([4, 3, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], 0.5, [1, 1, 0, 0]),
        ([4, 3, 0, 0], [1, 1, 0, 0], [7, 7, 1, 2], 0.0, [1, 1, 0, 0]),
        ([4, 3, 0, 0], [1, 1, 0, 0], [0, 0, 1, 2], 1.0, [0, 0, 1, 1]),
    ],
)
def test_gradient_growth_by_eye(weights, mask, gradients, fraction, expected):
    new = drop_and_grow(one(weights), mask_of(mask), fraction, gradients=one(gradients))
    assert bits(new) == expected


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("layer", ["conv.weight", "fc.weight", "dense.weight"])
def test_drop_and_grow_gives_the_recorded_masks(rate, layer):
    new = drop_and_grow(
        {layer: torch.from_numpy(RECORDED[f"before/w/{layer}"])},
        {layer: torch.from_numpy(RECORDED[f"before/mask/{layer}"]).bool()},
        rate,
        gradients={layer: torch.from_numpy(RECORDED[f"grad/{layer}"])},
    )
    assert np.array_equal(new[layer].numpy(), RECORDED[f"rate{rate}/mask/{layer}"].astype(bool))


@pytest.mark.parametrize("drop", DROP_SCORES)
@pytest.mark.parametrize("grow", GROW_SCORES)
@pytest.mark.parametrize("redistribution", REDISTRIBUTIONS)
@given(seed=st.integers(0, 10_000), fraction=st.floats(0, 1), share=st.floats(0.05, 1))
def test_every_combination_holds_the_count_of_every_layer(drop, grow, redistribution, seed, fraction, share):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (6, 5), "b": (3, 2, 2, 2)}
    masks = {name: torch.rand(shape, generator=generator) < share for name, shape in shapes.items()}
    weights = {name: torch.randn(shape, generator=generator) * masks[name] for name, shape in shapes.items()}
    gradients = {name: torch.randn(shape, generator=generator).round() for name, shape in shapes.items()}
    before = {name: mask.clone() for name, mask in masks.items()}

    def change(seed):
        return drop_and_grow(
            weights,
            masks,
            fraction,
            drop=drop,
            grow=grow,
            redistribution=redistribution,
            gradients=gradients,
            generator=torch.Generator().manual_seed(seed),
        )

    new = change(1)
    for name, mask in masks.items():
        assert int(new[name].sum()) == int(mask.sum())
        assert torch.equal(mask, before[name])
        kept_at_least = int(mask.sum()) - int(np.ceil(fraction * int(mask.sum()) - 1e-9))
        assert int((new[name] & mask).sum()) >= kept_at_least
    assert all(torch.equal(new[name], again) for name, again in change(1).items())


def test_random_growth_reaches_every_free_position_equally_often():
    # 3 of 6 active; one is dropped (the last), and grown among 4 free positions: 1/4 each.
    counts = torch.zeros(6)
    generator = torch.Generator().manual_seed(0)
    n = 4000
    for _ in range(n):
        new = drop_and_grow(
            one([3, 2, 1, 0, 0, 0]), mask_of([1, 1, 1, 0, 0, 0]), 0.3, grow="random", generator=generator
        )
        counts += new["w"]
    standard_error = (0.25 * 0.75 / n) ** 0.5
    assert (counts[2:] / n - 0.25).abs().max() < 4 * standard_error
    assert counts[0] == counts[1] == n


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grow": "gradeint"}, "unknown grow score 'gradeint'; did you mean 'gradient'"),
        ({"drop": "magnitud"}, "unknown drop score 'magnitud'; did you mean 'magnitude'"),
        ({"redistribution": "some"}, "unknown redistribution 'some'"),
        ({"grow": "gradient"}, "must be given the dense gradient of 'w'"),
        ({"grow": "random"}, "must be given a generator"),
    ],
)
def test_what_is_missing_or_unknown_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        drop_and_grow(one([1, 2]), mask_of([1, 0]), 0.5, **arguments)


def test_a_fraction_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]; got 1.5"):
        drop_and_grow(one([1, 2]), mask_of([1, 0]), 1.5, gradients=one([0, 0]))


def test_pruning_ranks_all_layers_together_or_each_on_its_own():
    weights = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([5.0, -6.5, 3.0, 2.0])}
    together = prune_to_density(weights, 0.5)
    assert [together[name].int().tolist() for name in "ab"] == [[1, 1, 1, 0], [0, 1, 0, 0]]
    alone = prune_to_density(weights, 0.5, scope="layer")
    assert [alone[name].int().tolist() for name in "ab"] == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_no_layer_is_emptied_and_the_count_stays_exact():
    weights = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([0.1, 0.3, 0.2, 0.1])}
    with pytest.warns(UserWarning, match="would have emptied b"):
        masks = prune_to_density(weights, 0.5)
    assert [masks[name].int().tolist() for name in "ab"] == [[1, 1, 1, 0], [0, 1, 0, 0]]


def test_a_layer_scope_keeps_one_connection_too():
    with pytest.warns(UserWarning, match="would have emptied a"):
        masks = prune_layers({"a": torch.tensor([1.0, 2.0])}, {"a": 0})
    assert masks["a"].tolist() == [False, True]


def test_an_active_weight_of_zero_ranks_above_an_inactive_one():
    weights, masks = {"a": torch.tensor([0.0, 0.0, 5.0, 0.0])}, {"a": torch.tensor([False, False, True, True])}
    assert prune_to_density(weights, 0.5, masks=masks)["a"].tolist() == [False, False, True, True]


@pytest.mark.filterwarnings("ignore:pruning would have emptied")
@given(st.integers(0, 10_000), st.floats(0.05, 1))
def test_global_pruning_keeps_exactly_the_floor(seed, density):
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(5, 4, generator=generator) for name in "abc"}
    assert num_active(prune_to_density(weights, density)) == int(density * 60 + 1e-9)
