"""Training state as bytes: masked tensors hold their active values only, and reading needs no trusted pickle."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from suptickets_ray.sparse.masks import true_positions, unpack
from suptickets_ray.tickets.masked_values import MaskedValues
from suptickets_ray.tickets.ticket import Ticket

_SEAL_BYTES = 32


def write_state(
    model: Module,
    optimizer: Optimizer,
    sparsifier: Mapping[str, Any],
    progress: Mapping[str, int],
    scaler: Mapping[str, Any] | None = None,
) -> bytes:
    """Returns the complete training state. Its size is roughly proportional to the density.

    Args:
        model: The network, with parameters and buffers.
        optimizer: Its optimizer. Entries with the shape of a masked weight are stored like the weight.
        sparsifier: `Sparsifier.state_dict()`.
        progress: Numbers that describe the progress of training.
        scaler: `GradScaler.state_dict()`, if there is a scaler.
    """
    layouts = _layouts(sparsifier)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [names.get(id(parameter), "") for group in optimizer.param_groups for parameter in group["params"]]
    dense = optimizer.state_dict()
    entries = {
        index: {key: _gathered(entry, held[index], layouts) for key, entry in of_parameter.items()}
        for index, of_parameter in dense["state"].items()
    }
    content = {
        "model": {name: _gathered(tensor, name, layouts) for name, tensor in model.state_dict().items()},
        "optimizer": {**dense, "state": entries},
        "sparsifier": dict(sparsifier),
        "scaler": dict(scaler or {}),
        "progress": dict(progress),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    saved = buffer.getvalue()
    return saved + _seal(saved)


def read_state(content: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns the state that `write_state` stored, with dense tensors.

    Returns:
        model, optimizer, sparsifier and scaler as their `load_state_dict` expects, on the device, and progress.

    Raises:
        ValueError: If the content is damaged.
    """
    state = _checked(content, device)
    layouts = _layouts(state["sparsifier"])
    entries = state["optimizer"]["state"].items()
    return {
        **state,
        "model": _dense(state["model"], layouts),
        "optimizer": {**state["optimizer"], "state": {index: _dense(some, layouts) for index, some in entries}},
    }


def ticket_from_state(content: bytes, provenance: Mapping[str, Any]) -> Ticket:
    """Returns the network in a state, without building a model or reading the optimizer's tensors.

    Args:
        content: Bytes that `write_state` returned.
        provenance: The ticket's provenance.

    Raises:
        ValueError: If the content is damaged.
    """
    state = _checked(content)
    bits, shapes = state["sparsifier"]["masks"], state["sparsifier"]["shapes"]
    masks = {name: unpack(packed, shapes[name]) for name, packed in bits.items()}
    return Ticket(_dense(state["model"], _layouts(state["sparsifier"])), masks, provenance)


def restore(model: Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads tensors by name into a model, with the metadata of the model's modules, e.g. their versions."""
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def read_progress(content: bytes) -> dict[str, int]:
    """Returns the progress in a stored state. Raises ValueError if the content is damaged."""
    return dict(_checked(content)["progress"])


def state_digest(content: bytes) -> str:
    """Returns the sha256 at the end of a stored state."""
    return content[-_SEAL_BYTES:].hex()


def is_whole(content: bytes) -> bool:
    """Returns whether the content is an undamaged stored state."""
    try:
        _checked(content)
    except ValueError:
        return False
    return True


def _check_archive(saved: bytes) -> None:
    """Raises ValueError if the archive would expand. torch writes no compressed entries, but reads them."""
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed")
    if sum(entry.file_size for entry in entries) > len(saved):
        raise ValueError("its entries are larger than the file")


def _seal(saved: bytes) -> bytes:
    """Returns the checksum that follows the archive. torch.load ignores it."""
    return hashlib.sha256(saved).digest()


def _checked(content: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns the stored content after checking its checksum, which torch does not check."""
    try:
        saved, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
        if seal != _seal(saved):
            raise ValueError("its checksum is wrong")
        _check_archive(saved)
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        for part in ("model", "optimizer", "sparsifier", "scaler", "progress"):
            dict(state[part])
    except Exception as error:  # damage can raise any exception
        raise ValueError(f"the stored state must be whole; it is damaged: {error}.") from error
    return state


def _layouts(sparsifier: Mapping[str, Any]) -> dict[str, MaskedValues]:
    """Returns the active positions of every layer with inactive weights, without values."""
    found = {}
    for name, bits in sparsifier.get("masks", {}).items():
        mask = unpack(bits.cpu(), sparsifier["shapes"][name])
        active = true_positions(mask)
        if len(active) < mask.numel():
            found[name] = MaskedValues(tuple(mask.shape), active, torch.empty(0))
    return found


def _dense(entries: Mapping[str, Any], layouts: Mapping[str, MaskedValues]) -> dict[str, Any]:
    """Returns the entries, with dense tensors for those that `_gathered` made."""
    return {
        name: replace(layouts[entry["layer"]], values=entry["active"]).dense() if isinstance(entry, dict) else entry
        for name, entry in entries.items()
    }


def _gathered(entry: Any, layer: str, layouts: Mapping[str, MaskedValues]) -> Any:
    """Returns the active values of a masked layer's tensor, or the tensor itself if it is not 0 off the mask."""
    if layer not in layouts or not isinstance(entry, Tensor) or entry.shape != layouts[layer].shape:
        return entry
    flat = entry.detach().reshape(-1)
    values = flat[layouts[layer].positions.to(flat.device)]
    if int(flat.count_nonzero()) != int(values.count_nonzero()):
        return entry
    return {"layer": layer, "active": values}
