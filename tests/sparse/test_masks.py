import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suptickets_ray.sparse.masks import count_down, count_up, density, digest, top_mask


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
