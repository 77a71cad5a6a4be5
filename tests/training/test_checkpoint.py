import hashlib
import io
import random
import zipfile

import pytest
import torch
from torch import nn

from suptickets_ray.sparse import Sparsifier
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import is_whole, read_progress, read_state, ticket_from_state, write_state


def trained(make_optimizer, density=0.1, method="rigl", width=300):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 300))
    optimizer = make_optimizer(model.parameters())
    settings = {"update_interval_steps": 2} if method != "dense" else {}
    generator = torch.Generator().manual_seed(1)
    sparsifier = Sparsifier(model, optimizer, method, density=density, total_steps=20, generator=generator, **settings)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(16, 40)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    return model, optimizer, sparsifier


def flat(state, path=""):
    if isinstance(state, dict):
        return {key: value for name in state for key, value in flat(state[name], f"{path}/{name}").items()}
    return {path: state}


OPTIMIZERS = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, 0.01),
    "plain": lambda parameters: torch.optim.SGD(parameters, 0.1),
}


@pytest.mark.parametrize("width", [30, 300], ids=["small", "gathered"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_read_is_what_was_written_bit_by_bit(name, width):
    model, optimizer, sparsifier = trained(OPTIMIZERS[name], width=width)
    state = read_state(write_state(model, optimizer, sparsifier.state_dict(), {"epoch": 3}))
    expected = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "sparsifier": sparsifier.state_dict()}
    expected, found = flat(expected), flat({key: state[key] for key in expected})
    assert list(found) == list(expected)
    for key, value in expected.items():
        same = torch.equal(value, found[key]) if isinstance(value, torch.Tensor) else value == found[key]
        assert same, key
    assert state["progress"] == {"epoch": 3}


def test_a_sparse_state_is_small_and_a_dense_one_is_as_it_is():
    sparse, dense = trained(OPTIMIZERS["momentum"], 0.05), trained(OPTIMIZERS["momentum"], 1.0, "dense")
    sizes = {}
    for what, (model, optimizer, sparsifier) in (("sparse", sparse), ("dense", dense)):
        sizes[what] = len(write_state(model, optimizer, sparsifier.state_dict(), {}))
    assert sizes["dense"] > 2 * 4 * 300 * 340
    assert sizes["sparse"] < 0.15 * sizes["dense"]


def test_an_entry_that_is_not_zero_off_the_mask_is_kept_whole():
    model, optimizer, sparsifier = trained(OPTIMIZERS["momentum"])
    mask = sparsifier.masks["3.weight"]
    with torch.no_grad():
        model[3].weight[~mask] = torch.nan
    state = read_state(write_state(model, optimizer, sparsifier.state_dict(), {}))
    assert torch.equal(state["model"]["3.weight"].isnan(), ~mask)


def test_a_damaged_state_is_never_taken_for_whole():
    model, optimizer, sparsifier = trained(OPTIMIZERS["momentum"], width=30)
    content = write_state(model, optimizer, sparsifier.state_dict(), {"epoch": 3})
    assert is_whole(content)
    moments = random.Random(0)
    for _ in range(400):
        damaged = bytearray(content)
        if moments.random() < 0.2:
            damaged = damaged[: moments.randrange(len(content))]
        else:
            damaged[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
        assert not is_whole(bytes(damaged))
    with pytest.raises(ValueError, match="must be whole; it is damaged"):
        read_progress(bytes(damaged))


def test_torch_itself_opens_what_was_written():
    content = write_state(*trained(OPTIMIZERS["momentum"])[:2], {}, {"epoch": 3})
    assert torch.load(io.BytesIO(content), weights_only=True)["progress"] == {"epoch": 3}


def test_a_foreign_file_is_refused():
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, buffer)
    with pytest.raises(ValueError, match="must be whole; it is damaged"):
        read_state(buffer.getvalue())


def test_an_archive_that_expands_is_refused_though_its_seal_holds():
    buffer, packed = io.BytesIO(), io.BytesIO()
    torch.save(
        {part: {"w": torch.zeros(10**6)} for part in ("model", "optimizer", "sparsifier", "scaler", "progress")}, buffer
    )
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as smaller:
        for entry in archive.infolist():
            smaller.writestr(entry.filename, archive.read(entry))
    saved = packed.getvalue()
    with pytest.raises(ValueError, match="the stored state must be whole; .*its entries are compressed"):
        read_state(saved + hashlib.sha256(saved).digest())


def test_the_network_in_a_state_is_read_without_a_model():
    model, optimizer, sparsifier = trained(OPTIMIZERS["momentum"])
    content = write_state(model, optimizer, sparsifier.state_dict(), {"epoch": 3})
    expected = Ticket(model.state_dict(), sparsifier.masks, {"run": "a"})
    assert ticket_from_state(content, {"run": "a"}).digest == expected.digest
