import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from suptickets_ray.sparse.maskable import last_linear, maskable_parameters, unwrap


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.conv1 = nn.Conv1d(2, 4, 3)
        self.conv2 = nn.Conv2d(2, 4, 3, groups=2)
        self.conv3 = nn.Conv3d(2, 4, 3)
        self.up = nn.ConvTranspose2d(4, 2, 3)
        self.norm = nn.LayerNorm((4, 8))
        self.batch_norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 3)


def names(model, *args, **options):
    return list(maskable_parameters(model, *args, **options))


WEIGHTS = [
    "conv1.weight",
    "conv2.weight",
    "conv3.weight",
    "up.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "head.weight",
]


def test_weights_of_all_kinds_of_layers_are_masked_but_for_embeddings_and_normalizations():
    assert names(Everything()) == WEIGHTS


def test_embeddings_are_masked_when_asked_for():
    assert names(Everything(), mask_embeddings=True) == ["embedding.weight", *WEIGHTS]


def test_asking_for_embeddings_that_are_not_there_is_refused():
    with pytest.raises(ValueError, match="mask_embeddings has no effect: the model has no embedding"):
        maskable_parameters(nn.Linear(3, 3), mask_embeddings=True)


def test_a_shared_weight_is_masked_once_under_its_first_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert names(model) == ["0.weight"]


def test_a_weight_tied_to_an_embedding_counts_as_one():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "head": nn.Linear(4, 7), "body": nn.Linear(4, 4)})
    model["head"].weight = model["embedding"].weight
    assert names(model) == ["body.weight"]
    assert names(model, mask_embeddings=True) == ["embedding.weight", "body.weight"]


@pytest.mark.parametrize(
    ("entries", "dense"),
    [
        (["first"], ["conv1.weight"]),
        (["last"], ["head.weight"]),
        (["head"], ["head.weight"]),
        (["head.weight"], ["head.weight"]),
        (["Conv2d"], ["conv2.weight"]),
        (["attention"], ["attention.in_proj_weight", "attention.out_proj.weight"]),
        (["conv*"], ["conv1.weight", "conv2.weight", "conv3.weight"]),
        (["MultiheadAttention"], ["attention.in_proj_weight"]),
        # out_proj is a subclass of nn.Linear
        (["Linear", "first"], ["conv1.weight", "attention.out_proj.weight", "head.weight"]),
    ],
)
def test_layers_are_kept_dense_by_place_name_pattern_or_type(entries, dense):
    assert names(Everything(), entries) == [name for name in WEIGHTS if name not in dense]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["haed"], "'haed' matches none; did you mean 'head'"),
        (["batch_norm"], "'batch_norm' matches none"),
        (["*"], r"dense_layers must leave a layer to mask; got \*, which is all"),
    ],
)
def test_an_entry_that_matches_nothing_or_everything_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        maskable_parameters(Everything(), entries)


def test_wrappers_are_looked_through():
    model = nn.Linear(3, 3)
    compiled = torch.compile(model, backend="eager")
    assert unwrap(compiled) is model
    assert names(compiled) == ["weight"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (parametrizations.weight_norm, "parametrized by _WeightNorm, which need not keep zeros"),
        (parametrizations.orthogonal, "parametrized by _Orthogonal"),
        (torch.nn.utils.spectral_norm, "SpectralNorm recomputes it in every forward pass"),
        (lambda layer: prune.random_unstructured(layer, "weight", 0.5), "RandomUnstructured recomputes it"),
    ],
)
def test_a_recomputed_weight_is_refused_but_may_be_kept_dense(spoil, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    spoil(model[0])
    with pytest.raises(ValueError, match=message):
        maskable_parameters(model)
    assert names(model, ["0"]) == ["1.weight"]


def test_a_lazy_weight_and_sparse_gradients_are_refused():
    with pytest.raises(ValueError, match="must have a shape; it is lazy. Run one batch"):
        maskable_parameters(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="its embedding has sparse=True"):
        maskable_parameters(nn.Embedding(3, 3, sparse=True), mask_embeddings=True)


def test_a_frozen_weight_is_refused_but_may_be_kept_dense():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    with pytest.raises(
        ValueError, match="'0.weight' must be trained; it is frozen. Set requires_grad, or keep it dense"
    ):
        maskable_parameters(model)
    assert names(model, ["first"]) == ["1.weight"]


def test_the_last_linear_layer_is_found():
    model = Everything()
    assert last_linear(model, maskable_parameters(model)) == "head.weight"
    assert last_linear(nn.Conv2d(1, 1, 1), {}) is None


class Decorated(nn.Module):
    """What vision transformers and ConvNeXt hold beside their layers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.layer_scale = nn.Parameter(torch.ones(4, 1, 1))
        self.class_token = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embedding = nn.Parameter(torch.ones(1, 5, 4))
        self.mixing = nn.Parameter(torch.ones(4, 4))


def test_vectors_in_disguise_and_positions_stay_dense_and_bare_matrices_are_masked():
    assert list(maskable_parameters(Decorated())) == ["mixing", "layer.weight"]
