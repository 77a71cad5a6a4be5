from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suptickets_ray.sparse import drop_and_grow, prune_to_density
from suptickets_ray.sparse.criteria import GROW_SCORES, REDISTRIBUTIONS, SALIENCY_SCORES, Layer
from suptickets_ray.sparse.distributions import share_out
from suptickets_ray.sparse.masks import digest, num_active, top_mask
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


SHAPES = {"a": (6, 5), "b": (3, 2, 2, 2), "c": (4, 4)}


def random_case(seed, share=0.5):
    """Weights, masks and everything that a criterion may read, with ties among the gradients."""
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(shape, generator=generator) < share for name, shape in SHAPES.items()}
    weights = {name: torch.randn(shape, generator=generator) * masks[name] for name, shape in SHAPES.items()}
    others = {
        "gradients": {name: torch.randn(shape, generator=generator).round() for name, shape in SHAPES.items()},
        "momenta": {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()},
        "explored": {
            name: masks[name] | (torch.rand(shape, generator=generator) < 0.3) for name, shape in SHAPES.items()
        },
    }
    return weights, masks, others


@pytest.mark.filterwarnings("ignore:the density would leave")
@pytest.mark.parametrize("drop", SALIENCY_SCORES)
@pytest.mark.parametrize("grow", GROW_SCORES)
@pytest.mark.parametrize("redistribution", REDISTRIBUTIONS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), fraction=st.floats(0, 1), share=st.floats(0.05, 1))
def test_every_combination_holds_the_counts(drop, grow, redistribution, seed, fraction, share):
    weights, masks, others = random_case(seed, share)
    before = {name: mask.clone() for name, mask in masks.items()}

    def change(seed):
        return drop_and_grow(
            weights,
            masks,
            fraction,
            drop=drop,
            grow=grow,
            redistribution=redistribution,
            generator=torch.Generator().manual_seed(seed),
            **others,
        )

    new = change(1)
    assert num_active(new) == num_active(masks)
    for name, mask in masks.items():
        assert torch.equal(mask, before[name])
        assert new[name].dtype == torch.bool
        assert new[name].any() or not mask.any()
        if redistribution == "none":
            assert int(new[name].sum()) == int(mask.sum())
        if drop != "threshold":
            kept_at_least = int(mask.sum()) - int(np.ceil(fraction * int(mask.sum()) - 1e-9))
            assert int((new[name] & mask).sum()) >= kept_at_least
    kept_at_least = num_active(masks) - int(np.ceil(fraction * num_active(masks) - 1e-9)) - len(masks)
    assert num_active({name: new[name] & mask for name, mask in masks.items()}) >= kept_at_least
    assert all(torch.equal(new[name], again) for name, again in change(1).items())


@pytest.mark.parametrize(
    ("key", "table"), [("drop", SALIENCY_SCORES), ("grow", GROW_SCORES), ("redistribution", REDISTRIBUTIONS)]
)
def test_no_two_rows_give_the_same_masks(key, table):
    weights, masks, others = random_case(3, share=0.6)
    weights["b"] *= 3  # so that one threshold for all layers is another than one for each
    # With a constant share dropped in each layer, as many as were active and as many as were dropped are in one ratio.
    chosen = {"drop": "threshold"} if key == "redistribution" else {}
    found = set()
    for row in table:
        generator = torch.Generator().manual_seed(0)
        found.add(digest(drop_and_grow(weights, masks, 0.4, **(chosen | {key: row}), generator=generator, **others)))
    assert len(found) == len(table)


@pytest.mark.parametrize(
    ("drop", "weights", "gradients", "fraction", "expected"),
    [
        # the smallest positive (1) and the largest negative (-1): one of each sign
        ("set", [4, 3, 2, 1, -4, -3, -2, -1], None, 0.25, [1, 1, 1, 0, 1, 1, 1, 0]),
        # by magnitude alone both would be positive
        ("magnitude", [4, 3, 0.2, 0.1, -4, -3, -2, -1], None, 0.25, [1, 1, 0, 0, 1, 1, 1, 1]),
        ("set", [4, 3, 0.2, 0.1, -4, -3, -2, -1], None, 0.25, [1, 1, 1, 0, 1, 1, 1, 0]),
        # six positive, two negative: four go, three and one
        ("set", [6, 5, 4, 3, 2, 1, -1, -2], None, 0.5, [1, 1, 1, 0, 0, 0, 0, 1]),
        # equal weights: the lower index stays
        ("set", [1, 1, 1, 1, -1, -1, -1, -1], None, 0.5, [1, 1, 0, 0, 1, 1, 0, 0]),
        # |w| + |g|
        ("mest", [4, 3, 2, 1], [0, 0, 0, 5], 0.25, [1, 1, 0, 1]),
    ],
)
def test_drop_scores_by_eye(drop, weights, gradients, fraction, expected):
    # All positions are active, so the only free ones are those just dropped: growth is told to prefer others.
    weights = torch.tensor(weights, dtype=torch.float32)
    layer = Layer(
        "w",
        weights,
        torch.ones_like(weights, dtype=torch.bool),
        gradient=None if gradients is None else torch.tensor(gradients),
    )
    kept = top_mask(SALIENCY_SCORES[drop](layer), len(weights) - int(fraction * len(weights)))
    assert kept.int().tolist() == expected


def test_a_threshold_drops_from_the_layers_with_the_small_weights():
    weights = {"a": torch.tensor([9.0, 8.0, 7.0, 0.0]), "b": torch.tensor([3.0, 2.0, 1.0, 0.0])}
    masks = {name: weight != 0 for name, weight in weights.items()}
    gradients = {name: torch.tensor([0.0, 0.0, 0.0, 1.0]) for name in weights}
    new = drop_and_grow(weights, masks, 1 / 6, drop="threshold", gradients=gradients)
    assert {name: mask.int().tolist() for name, mask in new.items()} == {"a": [1, 1, 1, 0], "b": [1, 1, 0, 1]}


@pytest.mark.parametrize(
    ("grow", "count", "expected"),
    [
        ("gradient", 2, [0, 0, 0, 0, 1, 1, 0, 0]),
        ("momentum", 2, [0, 0, 1, 1, 0, 0, 0, 0]),
        # free positions of the rows have mean |momentum| 4.5 and 2: counts 2 and 1
        ("momentum_neuron", 3, [0, 0, 1, 1, 1, 0, 0, 0]),
    ],
)
def test_grow_scores_by_eye(grow, count, expected):
    layer = Layer(
        "w",
        torch.zeros(2, 4),
        torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool(),
        count,
        gradient=torch.tensor([[9.0, 9, 1, 2], [-8, 7, 3, 3]]),
        momentum=torch.tensor([[9.0, 9, -5, 4], [2.5, 2, 2, 1.5]]),
    )
    assert top_mask(GROW_SCORES[grow](layer), count, among=~layer.mask).flatten().int().tolist() == expected


def test_random_unfired_takes_what_was_never_active_first():
    explored = {"w": torch.tensor([1, 1, 1, 1, 1, 0, 0, 1]).bool()}
    weights, masks = one([4, 3, 2, 1, 0, 0, 0, 0]), mask_of([1, 1, 1, 1, 0, 0, 0, 0])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        new = drop_and_grow(weights, masks, 0.5, grow="random_unfired", explored=explored, generator=generator)
        assert bits(new) == [1, 1, 0, 0, 0, 1, 1, 0]


def test_mixed_growth_takes_its_share_by_gradient_and_the_rest_at_random():
    weights, masks = one([4, 3, 2, 1, 0, 0, 0, 0, 0, 0]), mask_of([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    gradients = one([0, 0, 0, 0, 9, 8, 0, 0, 0, 0])
    grown = torch.zeros(10)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        new = drop_and_grow(weights, masks, 1.0, grow="mix", gradients=gradients, generator=generator)
        assert new["w"][[4, 5]].all()  # half of the four
        grown += new["w"]
    assert (grown[[0, 1, 2, 3, 6, 7, 8, 9]] > 0).all()
    all_random = drop_and_grow(
        weights,
        masks,
        1.0,
        grow="mix",
        gradients=gradients,
        generator=torch.Generator().manual_seed(0),
        gradient_share=0,
    )
    assert not all_random["w"][[4, 5]].all()


def redistributed(how, **given):
    weights = {"a": torch.tensor([4.0] * 8 + [0] * 8), "b": torch.tensor([1.0] * 4 + [0] * 6)}
    masks = {name: weight != 0 for name, weight in weights.items()}
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    new = drop_and_grow(weights, masks, 0.5, redistribution=how, gradients=gradients, **given)
    return [int(mask.sum()) for mask in new.values()]


def test_redistribution_by_hand():
    # a drops 4 of 8, b drops 2 of 4: six are grown
    assert redistributed("none") == [8, 4]
    assert redistributed("magnitude") == [9, 3]  # 4 : 1 of six is 4.8 and 1.2
    momenta = {"a": torch.ones(16), "b": torch.full((10,), -2.0)}
    assert redistributed("momentum", momenta=momenta) == [6, 6]  # 1 : 2 of six
    # under one threshold b drops all four, a two
    assert redistributed("none", drop="threshold") == [8, 4]
    assert redistributed("nonzeros", drop="threshold") == [10, 2]  # 8 : 4 of six


def test_no_layer_gets_more_than_its_free_positions_and_the_surplus_is_shared_again():
    assert share_out({"a": 1.0, "b": 8.0, "c": 1.0}, {"a": 9, "b": 2, "c": 9}, 9, dict.fromkeys("abc", 0)) == {
        "a": 4,
        "b": 2,
        "c": 3,
    }
    assert share_out({"a": 0.0, "b": 5.0}, {"a": 6, "b": 1}, 4, dict.fromkeys("ab", 0)) == {"a": 3, "b": 1}


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=6), st.floats(0, 1))
def test_what_is_shared_out_sums_up_and_fits(rows, share):
    shares = {str(index): row[0] for index, row in enumerate(rows)}
    capacities = {str(index): row[1] for index, row in enumerate(rows)}
    total = int(share * sum(capacities.values()))
    counts = share_out(shares, capacities, total, dict.fromkeys(shares, 0))
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= capacities[name] for name in counts)


def test_a_diverged_share_is_no_reason_to_fail():
    assert sum(share_out({"a": float("nan"), "b": 1.0}, {"a": 4, "b": 4}, 4, {"a": 0, "b": 0}).values()) == 4


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
