"""What a phase or a cycle ends in, as bytes: of masked tensors the active entries alone, and no pickle to trust."""

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
    """Returns everything that further training depends on; a sparse network's is about its density times as large.

    Args:
        model: Its parameters and buffers.
        optimizer: Its state; an entry of a masked weight's shape is stored as the weight is.
        sparsifier: `Sparsifier.state_dict()`.
        progress: What a reader wants to know of how far training is.
        scaler: `GradScaler.state_dict()`, where there is one.
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
    """Returns what `write_state` stored, its tensors dense.

    Returns:
        model, optimizer, sparsifier and scaler as their `load_state_dict` take them, on the device, and progress.

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
    """Loads tensors by name into a model, with the versions of its own modules, which torch keeps beside them."""
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def read_progress(content: bytes) -> dict[str, int]:
    """Returns the progress of what `write_state` stored. Raises ValueError if the content is damaged."""
    return dict(_checked(content)["progress"])


def state_digest(content: bytes) -> str:
    """Returns the sha256 of what `write_state` stored, as it stands at its end."""
    return content[-_SEAL_BYTES:].hex()


def is_whole(content: bytes) -> bool:
    """Returns whether content is what `write_state` stored, undamaged."""
    try:
        _checked(content)
    except ValueError:
        return False
    return True


def _check_archive(saved: bytes) -> None:
    """Raises ValueError if the archive would expand: torch writes it uncompressed, and reads whatever it holds."""
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed")
    if sum(entry.file_size for entry in entries) > len(saved):
        raise ValueError("its entries are larger than the file")


def _seal(saved: bytes) -> bytes:
    """What follows the archive: torch.load takes no notice of it."""
    return hashlib.sha256(saved).digest()


def _checked(content: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content as it is stored, once its seal holds; torch itself looks at no check sum."""
    try:
        saved, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
        if seal != _seal(saved):
            raise ValueError("its check sum does not hold")
        _check_archive(saved)
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        for part in ("model", "optimizer", "sparsifier", "scaler", "progress"):
            dict(state[part])
    except Exception as error:  # damage shows itself in any way
        raise ValueError(f"the stored state must be whole; it is damaged: {error}.") from error
    return state


def _layouts(sparsifier: Mapping[str, Any]) -> dict[str, MaskedValues]:
    """Returns the active positions of every layer in which something is masked, with no values."""
    found = {}
    for name, bits in sparsifier.get("masks", {}).items():
        mask = unpack(bits.cpu(), sparsifier["shapes"][name])
        active = true_positions(mask)
        if len(active) < mask.numel():
            found[name] = MaskedValues(tuple(mask.shape), active, torch.empty(0))
    return found


def _dense(entries: Mapping[str, Any], layouts: Mapping[str, MaskedValues]) -> dict[str, Any]:
    """Returns the entries with those that `_gathered` made as dense tensors."""
    return {
        name: replace(layouts[entry["layer"]], values=entry["active"]).dense() if isinstance(entry, dict) else entry
        for name, entry in entries.items()
    }


def _gathered(entry: Any, layer: str, layouts: Mapping[str, MaskedValues]) -> Any:
    """Returns the active values of a masked layer's tensor; the tensor itself if it is not 0 off the mask."""
    if layer not in layouts or not isinstance(entry, Tensor) or entry.shape != layouts[layer].shape:
        return entry
    flat = entry.detach().reshape(-1)
    values = flat[layouts[layer].positions.to(flat.device)]
    if int(flat.count_nonzero()) != int(values.count_nonzero()):
        return entry
    return {"layer": layer, "active": values}
