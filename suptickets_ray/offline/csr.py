"""Writes a ticket as compressed sparse rows (torch's CSR tensors), and loads it into a network."""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from suptickets_ray.tickets.masked_values import MaskedValues
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore


def to_csr_file(ticket: Ticket, metadata: Mapping[str, str]) -> bytes:
    """Returns a file for `torch.load(..., weights_only=True)`: a dict with csr, shapes, dense and metadata.

    csr contains each masked weight as a CSR tensor (out, all other dimensions flattened), e.g. (out, in * kh * kw) for
    a convolution. shapes contains the original shapes of these weights, and dense all other tensors.
    """
    content: dict[str, Any] = {"csr": {}, "shapes": {}, "dense": {}, "metadata": dict(metadata)}
    with _beta_warnings_ignored():
        for name, part in ticket.parts.items():
            if isinstance(part, MaskedValues):
                content["csr"][name] = as_csr(part)
                content["shapes"][name] = list(part.shape)
            else:
                content["dense"][name] = part
        buffer = io.BytesIO()
        torch.save(content, buffer)
    return buffer.getvalue()


def as_csr(part: MaskedValues) -> Tensor:
    """Returns the active entries of a masked tensor (out, ...) as a CSR tensor (out, other dimensions flattened)."""
    num_rows = part.shape[0]
    num_columns = max(math.prod(part.shape[1:]), 1)
    counts = torch.bincount(part.positions // num_columns, minlength=num_rows)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    with _beta_warnings_ignored():
        return torch.sparse_csr_tensor(
            first, part.positions % num_columns, part.values, (num_rows, num_columns), check_invariants=True
        )


def read_csr(path: str | Path) -> dict[str, Tensor]:
    """Returns all tensors of a CSR export as dense tensors in their original shapes, for `Module.load_state_dict`.

    Raises:
        ValueError: If the file is not a CSR export.
    """
    return _dense(_read(path))


def load_csr(path: str | Path, model: Module) -> Module:
    """Loads a CSR export into a network. Its masked linear layers then compute with CSR weights.

    These layers use only the active weights, and cannot be trained further. All other layers, such as convolutions,
    keep dense tensors, because torch requires them.

    Args:
        path: A local file that `suptickets export --format csr` wrote.
        model: A network with the ticket's tensors. It is modified.

    Returns:
        The same network in evaluation mode.

    Raises:
        ValueError: If the file is not a CSR export, or if it is an export of another network.
    """
    content = _read(path)
    try:
        restore(model, _dense(content))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"Cannot load {path} into this network: {reason}. Build the network of its recipe.") from error
    with _beta_warnings_ignored():
        for name, module in model.named_modules():
            # Exactly Linear: a subclass may use its weight in other ways.
            if type(module) is Linear and (key := f"{name}.weight" if name else "weight") in content["csr"]:
                weight = content["csr"][key].to(module.weight.device)
                module.weight = Parameter(weight, requires_grad=False)
    return model.eval()


def _read(path: str | Path) -> dict[str, Any]:
    try:
        with _beta_warnings_ignored():
            content = torch.load(path, weights_only=True)
        return {part: dict(content[part]) for part in ("csr", "shapes", "dense", "metadata")}
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a file that `suptickets export --format csr` wrote; got: {' '.join(str(error).split())}"
        ) from error


def _dense(content: Mapping[str, Any]) -> dict[str, Tensor]:
    with _beta_warnings_ignored():
        sparse = {name: csr.to_dense().view(content["shapes"][name]) for name, csr in content["csr"].items()}
    return {**content["dense"], **sparse}


@contextmanager
def _beta_warnings_ignored() -> Iterator[None]:
    """Ignores torch's warnings that CSR tensors are in beta state, and that loading them checks their invariants."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        warnings.filterwarnings("ignore", message="Validating sparse tensor invariants")
        yield
