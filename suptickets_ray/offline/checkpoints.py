"""Superposes networks that other programs trained: state_dict files of one model, described by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module

from suptickets_ray.config import Config
from suptickets_ray.offline.stored_ticket import device_of
from suptickets_ray.recipes.load import load_config
from suptickets_ray.superposition.assessment import summarize_tickets
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.tickets.averaging import superpose
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data import load_data
from suptickets_ray.training.determinism import worker_determinism
from suptickets_ray.training.loop import masked_parameters
from suptickets_ray.training.models import build_model
from suptickets_ray.training.weights_file import read_state_dict


def superpose_checkpoints(
    files: Sequence[str], recipe: str, overrides: Sequence[str] = ()
) -> tuple[Ticket, dict[str, Any]]:
    """Superposes checkpoints in the given order, and evaluates the result.

    The first checkpoint takes the place of the pretrained network: the common ancestor, or any of the others. The
    result has its density, or the recipe's, if that is lower.

    Args:
        files: At least two files of state_dicts, safetensors or torch, local or on any file system that pyarrow.fs
            supports.
        recipe: File or name of a recipe with the model, the data, the density and the superposition.
        overrides: Settings that replace those of the recipe.

    Returns:
        The superposed network, and the scores of all networks as in `result.json`. A ticket's chain is the position of
        its file after the first one.

    Raises:
        ValueError: If there are fewer than two files, or one does not fit the recipe's network.
    """
    if len(files) < 2:
        raise ValueError(f"--checkpoint must be given at least two files; got {', '.join(files) or 'none'}.")
    config = load_config(recipe, overrides)
    splits = load_data(config.data)
    model = build_model(config.model, splits.sample_shape, splits.num_classes)
    tickets = [_read(path, model, config) for path in files]
    ancestor = tickets[0]
    if config.method.density < ancestor.density:
        ancestor = superpose([ancestor], density=config.method.density, scope=config.superposition.prune_scope)
    with worker_determinism(config):
        merger = Merger(config, splits, ancestor, device_of(config))
        order = list(range(len(files) - 1))
        if merger.merges_best_first:
            name = merger.metric.name
            order = merger.best_first(order, lambda chain: merger.score(tickets[1 + chain], "validation")[name])
        reports = [merger.merge(tickets[1 + chain], chain, 0, validate=False) for chain in order]
        report = merger.evaluate((merged, tickets[1 + merged["chain"]]) for merged in reports)
    return merger.superposed, {"name": config.name, **report, **summarize_tickets(report)}


def _read(path: str, model: Module, config: Config) -> Ticket:
    """Returns the ticket of a file whose tensors are those of the network."""
    state = read_state_dict(path)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path} must match the recipe's network {config.model.name!r}; {name!r} is "
                f"{found.get(name, 'missing')} in the file and {expected.get(name, 'missing')} in the network."
            )
    masked = masked_parameters(model, config.method)
    own: dict[str, Tensor] = {name: state[name].to(tensor.dtype) for name, tensor in model.state_dict().items()}
    ticket = Ticket.from_state_dict(own, list(masked), {"checkpoint": path})
    if not ticket.is_finite:
        raise ValueError(f"{path} must be finite; it holds NaN or infinity.")
    return ticket
