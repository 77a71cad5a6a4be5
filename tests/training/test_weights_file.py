"""Runs start from the weights that other programs trained."""

import re

import pytest
import torch
from torch import nn

from suptickets_ray import Ticket, load_config, superpose
from suptickets_ray.training.data import load_data
from suptickets_ray.training.loop import build_learner
from suptickets_ray.training.weights_file import load_weights, read_state_dict


def network(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def save(path, state):
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, str(path))
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_weights_come_from_safetensors_and_from_torch(tmp_path, name):
    model = network()
    state = {key: torch.full_like(tensor, 2) for key, tensor in model.state_dict().items()}
    path = save(tmp_path / name, state)
    load_weights(model, path)
    assert all((tensor == 2).all() for tensor in model.state_dict().values())
    load_weights(network(), f"file://{path}")


@pytest.mark.parametrize(
    "wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_names_of_wrappers_are_removed(tmp_path, wrap):
    model = network()
    path = save(tmp_path / "a.pt", wrap(model.state_dict()))
    assert list(read_state_dict(path)) == list(model.state_dict())


def test_a_head_of_another_class_count_keeps_its_initial_weights_and_says_so(tmp_path):
    path = save(tmp_path / "a.pt", {key: torch.full_like(tensor, 2) for key, tensor in network(7).state_dict().items()})
    model = network(3)
    head = model[2].weight.clone()
    with pytest.warns(UserWarning, match=re.escape("the head was not loaded from")):
        load_weights(model, path)
    assert torch.equal(model[2].weight, head)
    assert (model[0].weight == 2).all()


def broken(change):
    state = dict(network().state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.weight"), "it lacks '0.weight'"),
        (lambda state: state.update({"9.weight": torch.ones(2)}), "it has '9.weight', which the network has not"),
        (
            lambda state: state.update({"0.weight": torch.ones(5, 6)}),
            "'0.weight' has the shape (5, 6) instead of (5, 4)",
        ),
        (
            lambda state: state.update({"2.weight": torch.ones(3, 9)}),
            "'2.weight' has the shape (3, 9) instead of (3, 5)",
        ),
        (lambda state: state.update({"0.bias": torch.full((5,), torch.nan)}), "must be finite; '0.bias'"),
        (lambda state: state.clear(), "must hold a state_dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_their_names(tmp_path, change, message):
    path = save(tmp_path / "a.pt", broken(change))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(network(), path)


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be an existing file, or weights of torchvision"):
        load_weights(network(), str(tmp_path / "none.pt"))
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="Cannot read .* as safetensors or a torch state_dict"):
        load_weights(network(), str(tmp_path / "a.pt"))


def test_weights_of_torchvision_come_from_the_cache_and_only_if_they_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="must be in torch's cache"):
        load_weights(network(), "ResNet18_Weights.DEFAULT")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match="its checksum differs"):
        load_weights(network(), "ResNet18_Weights.DEFAULT")


def test_the_first_masks_rank_the_loaded_weights(tmp_path):
    small = ["data.num_train_examples=60", "model.options.widths=[16]", "method.distribution=prune_global"]
    small += ["model.initialization=default"]
    config = load_config(None, [*small, "seed=7"])
    splits = load_data(config.data)
    trained = build_learner(config, splits, torch.device("cpu"))
    state = {name: torch.randn_like(tensor.float()) for name, tensor in trained.model.state_dict().items()}
    path = save(tmp_path / "a.pt", state)
    config = load_config(None, [*small, f"model.weights={path}"])
    learner = build_learner(config, splits, torch.device("cpu"))
    masks = learner.sparsifier.masks
    kept = torch.cat([state[name][mask].abs() for name, mask in masks.items()])
    dropped = torch.cat([state[name][~mask].abs() for name, mask in masks.items()])
    assert kept.min() >= dropped.max()
    assert torch.equal(learner.model[1].weight.detach(), state["1.weight"] * masks["1.weight"])


def test_weights_and_another_initialization_are_refused():
    with pytest.raises(ValueError, match="model.initialization has no effect with model.weights"):
        load_config(None, ["model.weights=a.pt", "model.initialization=sparse_fan_in"])


def test_networks_of_other_programs_become_tickets():
    states = [
        {"a.weight": torch.tensor([[1.0, 0.0], [2.0, 3.0]]) * factor, "a.bias": torch.ones(2)} for factor in (1, 3)
    ]
    tickets = [Ticket.from_state_dict(state) for state in states]
    assert tickets[0].density == 0.75
    merged = superpose(tickets, density=0.5)
    assert torch.equal(merged.state_dict()["a.weight"], torch.tensor([[0.0, 0.0], [4.0, 6.0]]))
    with pytest.raises(ValueError, match="'b' is none of them"):
        Ticket.from_state_dict(states[0], masked=["b"])
