"""A ticket as compressed sparse rows (torch's CSR tensors): written, and read back into a network."""

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

from suptickets_ray.tickets.arrow import SparseTensor
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore


def to_csr_file(ticket: Ticket, metadata: Mapping[str, str]) -> bytes:
    """Returns a file for `torch.load(..., weights_only=True)`: a dict of csr, shapes, dense and metadata.

    csr holds each masked weight as a CSR tensor (out, the rest flattened), so (out, in * kh * kw) of a convolution;
    shapes the weight's own shape; dense all other tensors.
    """
    content: dict[str, Any] = {"csr": {}, "shapes": {}, "dense": {}, "metadata": dict(metadata)}
    with _beta_accepted():
        for name, part in ticket.parts.items():
            if isinstance(part, SparseTensor):
                content["csr"][name] = as_csr(part)
                content["shapes"][name] = list(part.shape)
            else:
                content["dense"][name] = part
        buffer = io.BytesIO()
        torch.save(content, buffer)
    return buffer.getvalue()


def as_csr(part: SparseTensor) -> Tensor:
    """Returns a masked tensor (out, ...) as a CSR tensor (out, the rest flattened), its active entries alone."""
    num_rows = part.shape[0]
    num_columns = max(math.prod(part.shape[1:]), 1)
    counts = torch.bincount(part.positions // num_columns, minlength=num_rows)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    with _beta_accepted():
        return torch.sparse_csr_tensor(
            first, part.positions % num_columns, part.values, (num_rows, num_columns), check_invariants=True
        )


def read_csr(path: str | Path) -> dict[str, Tensor]:
    """Returns all tensors of a CSR export dense and in their own shapes, for `Module.load_state_dict`.

    Raises:
        ValueError: If the file is no CSR export.
    """
    return _dense(_read(path))


def load_csr(path: str | Path, model: Module) -> Module:
    """Loads a CSR export into a network, whose masked linear layers from now on multiply CSR weights.

    They compute with the active weights alone, and are not trained further. Convolutions and all else have dense
    tensors, which torch needs there.

    Args:
        path: A local file that `suptickets export --format csr` wrote.
        model: A network of the ticket's tensors; it is changed.

    Returns:
        The same network, ready for inference.

    Raises:
        ValueError: If the file is no CSR export, or not of this network.
    """
    content = _read(path)
    try:
        restore(model, _dense(content))
    except RuntimeError as error:
        raise ValueError(f"{path} must be an export of this network; {' '.join(str(error).split())}") from error
    with _beta_accepted():
        for name, module in model.named_modules():
            # Exactly Linear: who derives from it may use its weight in other ways.
            if type(module) is Linear and (key := f"{name}.weight" if name else "weight") in content["csr"]:
                weight = content["csr"][key].to(module.weight.device)
                module.weight = Parameter(weight, requires_grad=False)
    return model.eval()


def _read(path: str | Path) -> dict[str, Any]:
    try:
        with _beta_accepted():
            content = torch.load(path, weights_only=True)
        return {part: dict(content[part]) for part in ("csr", "shapes", "dense", "metadata")}
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a file that `suptickets export --format csr` wrote; got: {' '.join(str(error).split())}"
        ) from error


def _dense(content: Mapping[str, Any]) -> dict[str, Tensor]:
    with _beta_accepted():
        sparse = {name: csr.to_dense().view(content["shapes"][name]) for name, csr in content["csr"].items()}
    return {**content["dense"], **sparse}


@contextmanager
def _beta_accepted() -> Iterator[None]:
    """Torch warns that its CSR tensors are in beta state, and that it looks at them when it loads them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        warnings.filterwarnings("ignore", message="Validating sparse tensor invariants")
        yield
