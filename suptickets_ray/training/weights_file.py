"""Trained weights from a file: safetensors, a torch state_dict, or weights that torchvision has downloaded."""

from __future__ import annotations

import hashlib
import importlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from suptickets_ray.sparse.maskable import maskable_parameters
from suptickets_ray.tickets.store import RunStore, split_path

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to all names."""
_NESTED_KEYS = ("state_dict", "model_state_dict", "model")
_LISTED = 5


def load_weights(model: Module, source: str, *, download: bool = False) -> None:
    """Loads trained weights into a network, in place. A head of another class count keeps its initial weights.

    The head is the module of the last weight of 2 or more dimensions. A warning says that it was not loaded.

    Args:
        model: The network, with initial weights.
        source: A file, local or on any file system that pyarrow.fs supports, or the name of torchvision weights.
        download: Whether torchvision's weights may be downloaded.

    Raises:
        ValueError: If the file does not exist, is damaged, or does not fit the network. The message names the tensors.
    """
    found = read_state_dict(source, download=download)
    own = model.state_dict()
    # Files from before torch 0.4.1 have no such counters, and nothing reads them.
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    surplus = [name for name in found if name not in own]
    other = [name for name in found if name in own and found[name].shape != own[name].shape]
    head = _head(model)
    replaced = [name for name in other if name in head and found[name].shape[1:] == own[name].shape[1:]]
    unfit = [name for name in other if name not in replaced]
    problems = [f"it lacks {_listed(missing)}"] if missing else []
    problems += [f"it has {_listed(surplus)}, which the network has not"] if surplus else []
    problems += [
        f"{name!r} has the shape {tuple(found[name].shape)} instead of {tuple(own[name].shape)}" for name in unfit[:1]
    ]
    if problems:
        raise ValueError(
            f"model.weights must fit the network of model.name; got {source!r}: {'; '.join(problems)}. Choose the "
            "network that the weights were trained with."
        )
    bad = [name for name, tensor in found.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise ValueError(f"model.weights must be finite; {bad[0]!r} of {source!r} holds NaN or infinity.")
    model.load_state_dict({**own, **{name: tensor for name, tensor in found.items() if name not in replaced}})
    if replaced:
        warnings.warn(
            f"the head was not loaded from {source}: {_listed(replaced)} has {found[replaced[0]].shape[0]} rows in the "
            f"file and {own[replaced[0]].shape[0]} in the network. It keeps its initial weights.",
            stacklevel=2,
        )


def read_state_dict(source: str, *, download: bool = False) -> dict[str, Tensor]:
    """Returns the tensors of a file by name, on the CPU. Nothing is unpickled but tensors.

    Args:
        source: As for `load_weights`.
        download: As for `load_weights`.

    Raises:
        ValueError: If the file does not exist, or does not hold a state_dict.
    """
    content = _read_file(source)
    if content is None:
        content = _read_torchvision(source, download)
    try:
        state = _parse(content, PurePosixPath(source.partition("?")[0]).suffix == ".safetensors")
    except Exception as error:  # damage can raise any exception
        raise ValueError(f"Cannot read {source!r} as safetensors or a torch state_dict: {error}") from error
    for key in _NESTED_KEYS:
        if isinstance(inner := state.get(key), Mapping):
            state = dict(inner)
            break
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{source!r} must hold a state_dict, which maps names to tensors. Save model.state_dict().")
    return state


def _read_file(source: str) -> bytes | None:
    """Returns the content of a file, or None if there is none of this name."""
    folder, name = split_path(source)
    store = RunStore(folder)
    return store.read(name) if name and store.exists(name) else None


def _read_torchvision(name: str, download: bool) -> bytes:
    """Returns the file of torchvision's weights from torch's cache."""
    models = importlib.import_module("torchvision.models")  # takes seconds
    try:
        weights = models.get_weight(name)
    except (ValueError, KeyError, AttributeError):
        raise ValueError(
            f"model.weights must be an existing file, or weights of torchvision such as 'ResNet18_Weights.DEFAULT'; "
            f"got {name!r}."
        ) from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(weights.url).name
    if not path.exists():
        if not download:
            raise ValueError(
                f"model.weights must be in torch's cache; {path} does not exist. Allow its download with "
                "data.download=true, or set model.weights to a file."
            )
        torch.hub.load_state_dict_from_url(weights.url, check_hash=True, weights_only=True)
    content = path.read_bytes()
    expected = path.stem.rpartition("-")[2]  # torchvision's names end with the first digits of the file's sha256
    if not hashlib.sha256(content).hexdigest().startswith(expected):
        raise ValueError(f"{path} must be the file of {name!r}; its checksum differs. Remove it.")
    return content


def _parse(content: bytes, is_safetensors: bool) -> dict[str, Any]:
    if is_safetensors:
        try:
            from safetensors.torch import load
        except ImportError:
            raise ValueError(
                "safetensors is not installed. Install it with: pip install 'suptickets-ray[export]'."
            ) from None
        return dict(load(content))
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def _head(model: Module) -> set[str]:
    """Returns the names of the tensors of the module that holds the last weight."""
    names = list(maskable_parameters(model, check=False))
    return {name for name in model.state_dict() if names and name.rpartition(".")[0] == names[-1].rpartition(".")[0]}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more
