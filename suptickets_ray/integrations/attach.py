"""Attaches a Sparsifier to a model that a trainer has built or restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Generator
from torch.nn import Module
from torch.optim import Optimizer

from suptickets_ray.sparse import Sparsifier
from suptickets_ray.sparse.masks import unpack


def attach_sparsifier(
    model: Module,
    optimizer: Optimizer,
    method: str,
    settings: Mapping[str, Any],
    total_steps: int,
    seed: int,
    state: Mapping[str, Any] | None,
) -> Sparsifier:
    """Returns the Sparsifier of a model and its optimizer.

    Args:
        model: The model, with restored weights if there is a state.
        optimizer: Its optimizer.
        method: A name of `METHODS`.
        settings: Further arguments of the Sparsifier, e.g. density.
        total_steps: Optimizer steps of the whole training.
        seed: Seed of masks and growth, equal on all ranks.
        state: `Sparsifier.state_dict()` of an interrupted training; None starts a new one.

    Raises:
        ValueError: As the Sparsifier, and if the state is of another model, method or length of training.
    """
    # With the stored masks from the start: new initial masks would zero restored weights.
    masks = None
    if state is not None:
        masks = {name: unpack(bits.cpu(), state["shapes"][name]) for name, bits in state["masks"].items()}
    generator = Generator().manual_seed(seed)
    sparsifier = Sparsifier(
        model, optimizer, method, total_steps=total_steps, generator=generator, masks=masks, **settings
    )
    if state is not None:
        sparsifier.load_state_dict(state)
    return sparsifier
