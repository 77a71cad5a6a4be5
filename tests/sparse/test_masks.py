import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suptickets_ray.sparse import masks as mask_arithmetic
from suptickets_ray.sparse.masks import (
    count_down,
    count_up,
    density,
    digest,
    layer_digests,
    pack,
    top_mask,
    top_masks,
    unpack,
)


def bits(mask):
    return mask.int().tolist()


def test_counts_are_safe_from_float_noise():
    assert count_down(0.55, 100) == 55  # 0.55 * 100 is 55.00000000000001
    assert count_down(0.29, 100) == 29  # 0.29 * 100 is 28.999999999999996
    assert count_up(0.07, 100) == 7  # 0.07 * 100 is 7.000000000000001
    assert count_up(0.3, 11) == 4


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        ([1.0, 4.0, 3.0, 2.0], 2, [0, 1, 1, 0]),
        ([1.0, 1.0, 1.0, 1.0], 2, [1, 1, 0, 0]),
        ([0.0, 2.0, 1.0, 1.0, 1.0], 3, [0, 1, 1, 1, 0]),
        ([3.0, 1.0], 0, [0, 0]),
        ([3.0, 1.0], 2, [1, 1]),
        ([float("nan"), -5.0, 1.0], 2, [0, 1, 1]),
        ([float("inf"), float("inf"), 1.0], 1, [1, 0, 0]),
    ],
)
def test_the_highest_scores_are_taken_and_ties_go_to_the_lower_index(scores, count, expected):
    assert bits(top_mask(torch.tensor(scores), count)) == expected


def test_a_matrix_is_ranked_by_its_flat_index():
    assert bits(top_mask(torch.zeros(2, 2), 3)) == [[1, 1], [1, 0]]


def test_a_count_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"must be in \[0, 2\]; got 3"):
        top_mask(torch.zeros(2), 3)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_the_count_is_exact_and_no_worse_score_is_preferred(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    mask = top_mask(torch.tensor(scores, dtype=torch.float32), count)
    assert int(mask.sum()) == count
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert {int(i) for i in mask.nonzero()} == set(order[:count])


def test_density_counts_all_masks_together():
    assert density({"a": torch.tensor([True, False]), "b": torch.tensor([True] * 2 + [False] * 4)}) == 3 / 8
    assert density({}) == 1.0


def test_the_digest_tells_masks_names_and_shapes_apart():
    mask = torch.tensor([[True, False]])
    digests = {digest({"a": mask}), digest({"b": mask}), digest({"a": ~mask}), digest({"a": mask.T})}
    assert len(digests) == 4


def by_sorting(scores, count):
    """The definition: highest first, of equals the lower index, NaN last."""
    scores = torch.where(scores.isnan(), -float("inf"), scores.double())
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.sort(descending=True, stable=True).indices[:count]] = True
    return mask


def large(kind):
    scores = torch.randn(100_003, generator=torch.Generator().manual_seed(1))
    return {
        "normal": scores,
        "many ties": scores.mul(3).round(),
        "all equal": torch.zeros_like(scores),
        "mostly zero": scores * (scores > 1.5),
        "sorted, which misleads no sample": scores.sort().values,
        "one period is the sample's stride": torch.arange(100_003) % 7.0,
        "half NaN": scores.masked_fill(scores > 0, float("nan")),
        "infinite": scores.masked_fill(scores > 0, float("inf")).masked_fill(scores < -1, -float("inf")),
        "float64": scores.double(),
        "bfloat16": scores.bfloat16(),
    }[kind]


KINDS = ["normal", "many ties", "all equal", "mostly zero", "sorted, which misleads no sample"]
KINDS += ["one period is the sample's stride", "half NaN", "infinite", "float64", "bfloat16"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 777, 50_000, 99_999, 100_002])
def test_large_selections_are_those_of_a_full_sort(kind, count):
    scores = large(kind)
    assert torch.equal(top_mask(scores, count), by_sorting(scores, count))


@pytest.mark.parametrize("kind", KINDS)
def test_the_way_of_other_devices_gives_the_same(kind):
    scores = large(kind)
    for count in (1, 777, 99_999):
        assert torch.equal(mask_arithmetic._top_of_tensors([scores.float()], count)[0], by_sorting(scores, count))


def test_several_tensors_are_ranked_together_and_the_earlier_wins_a_tie():
    masks = top_masks([torch.tensor([1.0, 5.0]), torch.tensor([[5.0, 5.0], [9.0, 0.0]])], 3)
    assert [bits(mask) for mask in masks] == [[0, 1], [[1, 0], [1, 0]]]


@pytest.mark.parametrize("candidates", [[1, 1, 1, 1, 0], [0, 1, 0, 0, 1]])
def test_only_candidates_are_chosen_whatever_their_score(candidates):
    among = torch.tensor(candidates).bool()
    for worst in (-float("inf"), float("nan"), -1.0):
        scores = torch.where(among, worst, 7.0)
        assert torch.equal(top_mask(scores, int(among.sum()), among=among), among)
    with pytest.raises(ValueError, match="the number of positions must be in"):
        top_mask(torch.zeros(5), int(among.sum()) + 1, among=among)


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 3), (2, 3, 5), (0, 4)])
def test_packed_bits_give_the_mask_back(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(unpack(pack(mask), shape), mask)
    assert pack(mask).numel() == -(-mask.numel() // 8)


def test_bits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must be 2 bytes for shape \(3, 3\); got 1"):
        unpack(pack(torch.ones(8, dtype=torch.bool)), (3, 3))


def test_layer_digests_say_which_layer_differs():
    ones = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(3, dtype=torch.bool)}
    other = {**ones, "b": torch.tensor([True, True, False])}
    assert [layer_digests(ones)[name] == layer_digests(other)[name] for name in "ab"] == [True, False]
