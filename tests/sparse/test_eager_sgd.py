"""EagerSGD computes what torch's SGD computes."""

import copy

import pytest
import torch

from suptickets_ray.sparse import Sparsifier
from suptickets_ray.sparse.eager_sgd import EagerSGD

SETTINGS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5, "maximize": True},
]


def trained(optimizer_class, steps, sparse, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 4000), torch.nn.ReLU(), torch.nn.Linear(4000, 2))
    optimizer = optimizer_class(model.parameters(), lr=0.1, **settings)
    sparsifier = None
    if sparse:
        generator = torch.Generator().manual_seed(0)
        options = {"density": 0.1, "total_steps": steps, "generator": generator, "update_interval_steps": 2}
        sparsifier = Sparsifier(model, optimizer, "set", **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        if sparsifier:
            sparsifier.step()
    return model, optimizer


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_weights_and_state_equal_those_of_torch(settings, sparse):
    (model, optimizer), (expected, torchs) = (
        trained(each, 5, sparse, **settings) for each in (EagerSGD, torch.optim.SGD)
    )
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), torchs.state_dict(), rtol=0, atol=0)


def test_a_step_records_no_gradients():
    model, optimizer = trained(EagerSGD, 1, sparse=False, momentum=0.9)
    assert all(parameter.is_leaf for parameter in model.parameters())
    assert not any(entry["momentum_buffer"].requires_grad for entry in optimizer.state.values())
    assert torch.is_grad_enabled()


def test_a_closure_is_called_with_gradients():
    model, optimizer = trained(EagerSGD, 1, sparse=False)
    assert optimizer.step(lambda: model(torch.ones(1, 20)).sum()).requires_grad


def test_saved_state_is_that_of_torch():
    _, optimizer = trained(EagerSGD, 2, sparse=False, momentum=0.9)
    saved = copy.deepcopy(optimizer.state_dict())
    _, torchs = trained(torch.optim.SGD, 1, sparse=False, momentum=0.9)
    torchs.load_state_dict(saved)
    _, other = trained(EagerSGD, 1, sparse=False, momentum=0.9)
    other.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(other.state_dict(), saved, rtol=0, atol=0)


def test_hooks_are_called():
    called = []
    model, optimizer = trained(EagerSGD, 1, sparse=False)
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    assert called == ["before", "after"]
