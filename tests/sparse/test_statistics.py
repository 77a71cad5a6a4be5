import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from suptickets_ray.sparse import Sparsifier, layer_densities
from suptickets_ray.sparse.maskable import maskable_parameters
from suptickets_ray.sparse.statistics import (
    count_uses,
    dead_channels,
    explored_fraction,
    layer_table,
    mask_distance,
)


def two_layers():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))


def test_flops_of_two_layers_by_hand():
    uses = count_uses(two_layers(), torch.zeros(2, 3, 8, 8))
    # 3 * 4 * 3 * 3 = 108 weights at 4 x 4 positions, 320 weights once
    assert uses.sizes == {"0.weight": 108, "3.weight": 320}
    assert uses.per_example == {"0.weight": 16, "3.weight": 1}
    assert uses.dense_flops() == 2 * (108 * 16 + 320)
    assert uses.forward_flops({"0.weight": 10, "3.weight": 100}) == 2 * (10 * 16 + 100)
    assert uses.forward_flops({"0.weight": 10}) == 2 * (10 * 16 + 320)
    assert uses.forward_ratio({"0.weight": 54, "3.weight": 160}) == 0.5


def resnet50():
    with torch.device("meta"):
        return torchvision.models.resnet50(), torch.empty(1, 3, 224, 224)


@pytest.mark.parametrize(("density", "published"), [(0.1, 0.24), (0.2, 0.42)])
def test_erk_on_resnet50_has_the_published_share_of_flops(density, published):
    # RigL, 1911.11134, figure 2: 0.24x and 0.42x of 8.2e9 FLOPs; ours are 0.242 and 0.414
    model, inputs = resnet50()
    uses = count_uses(model, inputs)
    shapes = {name: tuple(parameter.shape) for name, parameter in maskable_parameters(model).items()}
    counts = {name: share * uses.sizes[name] for name, share in layer_densities(shapes, density).items()}
    assert uses.dense_flops() == pytest.approx(8.2e9, rel=0.01)
    assert uses.forward_ratio(counts) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("build", ["resnet50", "mobilenet_v3_small", "vit_b_16"])
def test_dense_flops_are_those_that_torch_counts(build):
    with torch.device("meta"):
        model, inputs = getattr(torchvision.models, build)(), torch.empty(2, 3, 224, 224)
    uses = count_uses(model, inputs)
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    total = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    weights = sum(flops for op, flops in total.items() if "attention" not in op and "bmm" not in op)
    assert 2 * uses.dense_flops() == pytest.approx(weights, rel=1e-6)


def test_transposed_convolutions_and_shared_weights_are_counted():
    up = nn.ConvTranspose1d(2, 3, 4)
    assert count_uses(up, torch.zeros(5, 2, 7)).per_example == {"weight": 7}
    shared = nn.Linear(4, 4)
    assert count_uses(nn.Sequential(shared, shared), torch.zeros(5, 4)).per_example == {"0.weight": 2}


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_uses(model, torch.randn(3, 4))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def trained(method, steps, **recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    density = 1.0 if method == "dense" else 0.25
    settings = {"density": density, "total_steps": 8, "generator": torch.Generator().manual_seed(0)}
    sparsifier = Sparsifier(model, optimizer, method, **settings, **recipe)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 8)), torch.arange(4)).backward()
        optimizer.step()
        sparsifier.step()
    return count_uses(model, torch.zeros(1, 8)), sparsifier


def test_training_flops_by_hand():
    # 120 weights; forward and twice that backward, 2 FLOPs each
    assert trained("dense", 4)[0].training_flops(trained("dense", 4)[1], 16) == 4 * 3 * 2 * 120 * 16
    uses, static = trained("static", 4)
    assert uses.training_flops(static, 16) == 4 * 3 * 2 * 30 * 16
    assert uses.training_ratio(static) == 0.25
    # two updates, at steps 2 and 4, each with the gradients of the 90 inactive weights
    uses, rigl = trained("rigl", 4, update_interval_steps=2)
    assert uses.training_flops(rigl, 1) == 2 * (4 * 3 * 30 + 2 * 90)
    # random growth needs no dense gradients
    uses, random = trained("set", 4, update_interval_steps=2)
    assert uses.training_flops(random, 1) == 2 * 4 * 3 * 30


def test_gradual_pruning_costs_what_was_active_at_each_step():
    uses, gmp = trained("gmp", 8, update_interval_steps=2, prune_end_fraction=0.5)
    # dense until after step 2, then 0.25 + 0.75 * (1/2)^3 of 120 = 41, then 30 from after step 4 on
    assert sum(gmp.active_steps.values()) == 2 * 120 + 2 * 41 + 4 * 30
    assert uses.training_ratio(gmp) == pytest.approx((2 * 120 + 2 * 41 + 4 * 30) / (8 * 120))


def test_the_table_of_layers():
    masks = {"a": torch.tensor([[1, 0, 1], [0, 0, 0]]).bool(), "b": torch.ones(2, 1, 2, 2).bool()}
    rows = layer_table(masks)
    assert [(row.name, row.shape, row.num_active, row.num_weights, row.dead_channels) for row in rows] == [
        ("a", (2, 3), 2, 6, 1),
        ("b", (2, 1, 2, 2), 8, 8, 0),
    ]
    assert rows[0].density == 2 / 6
    assert dead_channels(masks) == {"a": 1, "b": 0}


def test_mask_distance_and_explored_share():
    a, b = {"w": torch.tensor([1, 1, 0, 0]).bool()}, {"w": torch.tensor([1, 0, 1, 0]).bool()}
    assert mask_distance(a, a) == 0
    assert mask_distance(a, {"w": ~a["w"]}) == 1
    assert mask_distance(a, b) == 1 - 1 / 3
    assert explored_fraction(a) == 0.5
    with pytest.raises(ValueError, match="must be given masks of one model"):
        mask_distance(a, {"v": b["w"]})


def test_dead_channels_of_transposed_convolutions_and_flops_of_parametrized_layers():
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]]).bool().view(2, 3, 1)
    assert dead_channels({"up": mask}, {"up": 1}) == {"up": 1}
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    assert count_uses(model, torch.zeros(1, 4)).dense_flops() == 2 * (16 + 8)
