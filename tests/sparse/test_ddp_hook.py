"""The communication hook on made-up buckets, without processes; tests/sparse/test_ranks.py has real ones."""

from types import SimpleNamespace

import pytest
import torch
from pretend_device import pretend_device
from torch import nn

from suptickets_ray.sparse import Sparsifier
from suptickets_ray.sparse.ddp import ActiveGradientReduction


@pytest.fixture
def network(monkeypatch):
    """A network in channels_last with two masked layers, its optimizer and Sparsifier; there is one rank."""

    def one_rank(self, tensor):
        future = torch.futures.Future()
        future.set_result([tensor])
        return future

    monkeypatch.setattr(ActiveGradientReduction, "_sum", one_rank)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 10)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(1)
    sparsifier = Sparsifier(
        model, optimizer, "rigl", density=0.3, total_steps=20, update_interval_steps=2, generator=generator
    )
    return model, optimizer, sparsifier


def bucket_of(model, device="cpu"):
    """All gradients in one buffer, each in its parameter's memory format, as DDP holds them."""
    parameters = list(model.parameters())[::-1]
    flat = torch.randn(sum(parameter.numel() for parameter in parameters), device=device)
    views, begin = [], 0
    for parameter in parameters:
        views.append(flat.as_strided(parameter.shape, parameter.stride(), begin))
        begin += parameter.numel()
    return SimpleNamespace(
        index=lambda: 0, buffer=lambda: flat, gradients=lambda: views, parameters=lambda: list(parameters)
    )


def test_active_gradients_are_kept_and_all_others_are_zero(network):
    model, _, sparsifier = network
    bucket = bucket_of(model)
    before = [view.clone() for view in bucket.gradients()]
    ActiveGradientReduction(sparsifier, None).reduce(bucket).wait()
    masks = {id(parameter): sparsifier.masks[name] for name, parameter in sparsifier.parameters.items()}
    for parameter, old, new in zip(bucket.parameters(), before, bucket.gradients(), strict=True):
        assert torch.equal(new, old * masks.get(id(parameter), torch.tensor(True)))


def test_positions_are_found_once_per_mask(network):
    model, optimizer, sparsifier = network
    hook = ActiveGradientReduction(sparsifier, None)
    for _ in range(2):
        hook.reduce(bucket_of(model)).wait()
    first = hook._layouts[0].positions
    hook.reduce(bucket_of(model)).wait()
    assert hook._layouts[0].positions is first
    for _ in range(2):  # the second step exchanges connections
        model(torch.randn(4, 3, 4, 4)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        optimizer.zero_grad()
    hook.reduce(bucket_of(model)).wait()
    assert not torch.equal(hook._layouts[0].positions, first)


def test_a_bucket_of_other_parameters_gets_positions_of_its_own(network):
    model, _, sparsifier = network
    hook = ActiveGradientReduction(sparsifier, None)
    hook.reduce(bucket_of(model)).wait()
    number = len(hook._layouts[0].positions)
    hook.reduce(bucket_of(model[2])).wait()  # DDP sorts its buckets again after the first step
    assert len(hook._layouts[0].positions) < number


def test_a_step_of_the_hook_does_not_make_the_host_wait(network):
    """On a made-up GPU, once the positions of the masks are known."""
    model, optimizer, _ = network
    with pretend_device() as account:
        model.to("cuda")
        generator = torch.Generator().manual_seed(1)
        sparsifier = Sparsifier(model, optimizer, "static", density=0.3, total_steps=20, generator=generator)
        hook = ActiveGradientReduction(sparsifier, None)
        bucket = bucket_of(model, "cuda")
        hook.reduce(bucket).wait()
        account.clear()
        hook.reduce(bucket).wait()
    assert account.num_waits == 0, account.table()
    assert sum(account.launches.values()) < 6
