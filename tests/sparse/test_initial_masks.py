import pytest
import torch

from suptickets_ray.sparse.initial_masks import INITIAL_MASKS, STRUCTURED, Start, initial_masks, uniform_counts
from suptickets_ray.sparse.masks import digest, num_active

SHAPES = {"conv": (8, 3, 3, 3), "mid": (16, 8), "head": (10, 16)}
TOTAL = 8 * 27 + 16 * 8 + 160


def start(density=0.3, seed=0, **changes):
    generator = torch.Generator().manual_seed(5)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    gradients = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    draw = torch.Generator().manual_seed(seed)
    return Start(**{"weights": weights, "density": density, "generator": draw, "gradients": gradients} | changes)


@pytest.mark.parametrize("distribution", sorted(set(INITIAL_MASKS) - STRUCTURED))
@pytest.mark.parametrize("density", [0.1, 0.3, 0.77, 1.0])
def test_every_row_keeps_exactly_the_floor(distribution, density):
    masks = initial_masks(distribution, start(density, last_linear="head"))
    assert num_active(masks) == int(density * TOTAL + 1e-9)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == SHAPES
    assert all(mask.any() for mask in masks.values())


def test_no_two_rows_give_the_same_masks():
    nonzeros = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    for weight in nonzeros.values():
        weight.view(-1)[: int(0.7 * weight.numel())] = 0
    found = {
        digest(initial_masks(row, start(0.25, weights=nonzeros if row == "from_nonzeros" else start().weights)))
        for row in INITIAL_MASKS
    }
    assert len(found) == len(INITIAL_MASKS)


def test_only_random_rows_depend_on_the_generator():
    for row in INITIAL_MASKS:
        same = digest(initial_masks(row, start(seed=1))) == digest(initial_masks(row, start(seed=2)))
        assert same == (row not in ("erk", "er", "uniform"))


def test_global_and_uniform_pruning_by_eye():
    weights = {"a": torch.tensor([[9.0, -8], [7, 6]]), "b": torch.tensor([[1.0, 6.5], [-3, 2]])}
    keep = {
        row: {
            name: mask.int().flatten().tolist()
            for name, mask in initial_masks(row, start(0.5, weights=weights)).items()
        }
        for row in ("prune_global", "prune_uniform")
    }
    assert keep["prune_global"] == {"a": [1, 1, 1, 0], "b": [0, 1, 0, 0]}
    assert keep["prune_uniform"] == {"a": [1, 1, 0, 0], "b": [0, 1, 1, 0]}


def test_snip_by_eye():
    weights, gradients = {"a": torch.tensor([[4.0, 3, 2, 1]])}, {"a": torch.tensor([[1.0, -1, 5, 0]])}
    masks = initial_masks("snip", start(0.5, weights=weights, gradients=gradients))
    assert masks["a"].int().tolist() == [[1, 0, 1, 0]]


def test_prune_and_grow_exchanges_the_share_by_gradient():
    weights = {"a": torch.tensor([[8.0, 7, 6, 5, 1, 1, 1, 1]])}
    gradients = {"a": torch.tensor([[0.0, 0, 0, 0, 1, 2, 9, 3]])}
    changes = {"weights": weights, "gradients": gradients, "regrow_fraction": 0.25}
    masks = initial_masks("prune_and_grow_global", start(0.5, **changes))
    assert masks["a"].int().tolist() == [[1, 1, 1, 0, 0, 0, 1, 0]]


@pytest.mark.parametrize("row", ["snip", "prune_and_grow_global", "prune_and_grow_structured"])
def test_a_missing_gradient_is_said(row):
    with pytest.raises(ValueError, match="must be given the dense gradients of a first batch"):
        initial_masks(row, start(gradients=None))


def test_uniform_pruning_leaves_the_last_linear_layer_at_a_fifth():
    counts = uniform_counts({"conv": 1000, "mid": 800, "head": 200}, 0.1, "head")
    assert counts == {"conv": 89, "mid": 71, "head": 40}  # 200 in all; 160 of 1,800 for the others
    assert uniform_counts({"conv": 1000, "head": 200}, 0.25, "head") == {"conv": 250, "head": 50}
    assert uniform_counts({"head": 200}, 0.1, "head") == {"head": 20}
    assert uniform_counts({"conv": 1000, "head": 1000}, 0.1, None) == {"conv": 100, "head": 100}


def test_uniform_pruning_never_keeps_more_than_is_active():
    counts = uniform_counts({"conv": 30, "mid": 500}, 0.1, None, sizes={"conv": 1000, "mid": 1000})
    assert counts == {"conv": 30, "mid": 170}


def test_a_density_that_the_last_linear_layer_uses_up_is_refused():
    with pytest.raises(ValueError, match="uniform pruning keeps 'head' at 0.2, that is 200 of 101; got 0.1"):
        uniform_counts({"conv": 10, "head": 1000}, 0.1, "head")


def test_nonzeros_of_a_loaded_network_are_its_masks():
    weights = {"a": torch.tensor([[0.0, 2, 0, -1], [0, 0, 3, 0]])}
    assert initial_masks("from_nonzeros", start(3 / 8, weights=weights))["a"].int().tolist() == [
        [0, 1, 0, 1],
        [0, 0, 1, 0],
    ]
    assert initial_masks("from_nonzeros", start(2 / 8, weights=weights))["a"].int().tolist() == [
        [0, 1, 0, 0],
        [0, 0, 1, 0],
    ]
    with pytest.raises(ValueError, match="at most the fraction of non-zero weights, 0.375; got 0.5"):
        initial_masks("from_nonzeros", start(0.5, weights=weights))


@pytest.mark.parametrize("row", sorted(STRUCTURED))
@pytest.mark.parametrize("density", [0.25, 0.5, 0.9])
def test_structured_rows_keep_exact_counts_of_whole_channels(row, density):
    masks = initial_masks(row, start(density))
    for name, channels in (("conv", 8), ("mid", 16)):
        rows = masks[name].flatten(1)
        assert torch.equal(rows.any(1), rows.all(1))
        assert int(rows.any(1).sum()) == int(density * channels)
    assert masks["head"].all()


def test_structured_rows_choose_channels_by_weight_and_by_gradient():
    weights = {"a": torch.tensor([[4.0, -4], [3, 3], [2, 2], [1, 1]]), "head": torch.ones(2, 4)}
    gradients = {"a": torch.tensor([[0.0, 0], [0, 0], [1, 1], [-2, 2]]), "head": torch.ones(2, 4)}
    assert initial_masks("prune_structured", start(0.5, weights=weights))["a"].all(1).int().tolist() == [1, 1, 0, 0]
    grown = initial_masks("prune_and_grow_structured", start(0.5, weights=weights, gradients=gradients))
    assert grown["a"].all(1).int().tolist() == [1, 0, 0, 1]


def test_a_single_layer_has_no_channels_to_prune():
    with pytest.raises(ValueError, match="must have a layer before the last"):
        initial_masks("prune_structured", start(weights={"a": torch.ones(4, 4)}))


def test_transposed_convolutions_are_pruned_by_their_output_channels():
    weights = {"up": torch.tensor([[[5.0], [1.0], [3.0]], [[5.0], [1.0], [3.0]]]), "head": torch.ones(2, 3)}
    masks = initial_masks("prune_structured", start(0.67, weights=weights, output_dimensions={"up": 1}))
    assert masks["up"].int().squeeze(2).tolist() == [[1, 0, 1], [1, 0, 1]]
