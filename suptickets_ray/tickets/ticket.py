"""A ticket as a value, and its Arrow form: one row per tensor, active values only, no pickle."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from suptickets_ray.sparse import masks as mask_arithmetic

FORMAT_VERSION = 1
_METADATA_KEY = b"suptickets_ray.ticket"
_DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
}
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("mask", pa.binary()),  # bits, lowest first; null when the tensor is dense
        pa.field("values", pa.binary(), nullable=False),  # little-endian, in flat order, active positions only
    ]
)


class Ticket:
    """Weights, masks, buffers and provenance at the end of a cycle. A value: nothing in it changes after it is made."""

    def __init__(self, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Copies the tensors to the CPU.

        Args:
            state: Parameters and buffers by name, as `Module.state_dict()` gives them.
            masks: Bool mask of each sparse weight, of the weight's shape.
            provenance: Where the ticket comes from, as JSON values: run, chain, cycle, seed, digests.

        Raises:
            ValueError: If a mask belongs to no tensor, has another shape, or a weight is not 0 off its mask.
        """
        self._state = {name: _owned(tensor) for name, tensor in state.items()}
        self._masks = {name: _owned(mask.bool()) for name, mask in masks.items()}
        self._provenance = dict(provenance)
        for name, mask in self._masks.items():
            if name not in self._state or self._state[name].shape != mask.shape:
                found = tuple(self._state[name].shape) if name in self._state else "no such tensor"
                raise ValueError(f"the mask of {name!r} must have its tensor's shape {tuple(mask.shape)}; got {found}.")
            off_mask = self._state[name][~mask]
            if bool(off_mask.ne(0).any()):
                raise ValueError(
                    f"{name!r} must be 0 off its mask; got {int(off_mask.ne(0).sum())} other values there."
                )
            self._state[name].masked_fill_(~mask, 0)  # -0.0 too: equal tickets have equal bits

    def state_dict(self) -> dict[str, Tensor]:
        """Returns a copy of all tensors by name, for `Module.load_state_dict`."""
        return {name: tensor.clone() for name, tensor in self._state.items()}

    @property
    def masks(self) -> dict[str, Tensor]:
        """A copy of the bool masks by name, each of its weight's shape."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    @property
    def provenance(self) -> dict[str, Any]:
        """A copy of where the ticket comes from."""
        return dict(self._provenance)

    @cached_property
    def density(self) -> float:
        """The share of active weights among the masked tensors, in (0, 1]."""
        return mask_arithmetic.density(self._masks)

    @cached_property
    def digest(self) -> str:
        """The sha256 of names, shapes, types, masks and active values: equal for equal content, whatever its origin."""
        summary = hashlib.sha256()
        for row in self._rows():
            header = [row["name"], row["shape"], row["dtype"], row["mask"] is not None]
            for part in (json.dumps(header).encode(), row["mask"] or b"", row["values"]):
                summary.update(len(part).to_bytes(8, "little") + part)
        return summary.hexdigest()

    def to_arrow(self) -> pa.Table:
        """Returns the ticket as a table of `SCHEMA`, with version, digest and provenance as schema metadata."""
        metadata = {"version": FORMAT_VERSION, "digest": self.digest, "provenance": self._provenance}
        schema = SCHEMA.with_metadata({_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
        return pa.Table.from_pylist(list(self._rows()), schema=schema)

    @staticmethod
    def from_arrow(table: pa.Table) -> Ticket:
        """Returns the ticket that a table holds.

        Raises:
            ValueError: If the table is foreign, of an unknown version, or its content does not have its digest.
        """
        raw = (table.schema.metadata or {}).get(_METADATA_KEY)
        if raw is None or not table.schema.remove_metadata().equals(SCHEMA):
            raise ValueError(
                f"the table must be a ticket; got columns {table.schema.names} without a ticket's metadata."
            )
        try:
            metadata = json.loads(raw)
            version, digest, provenance = metadata["version"], metadata["digest"], metadata["provenance"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the ticket's metadata must be readable; it is damaged: {error!r}.") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"the ticket's version must be {FORMAT_VERSION}; got {version}. Update suptickets_ray.")
        state: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        for row in table.to_pylist():
            tensor, mask = _decode(row)
            state[row["name"]] = tensor
            if mask is not None:
                masks[row["name"]] = mask
        ticket = Ticket(state, masks, provenance)
        if ticket.digest != digest:
            raise ValueError(f"the ticket's content must have the digest {digest}; got {ticket.digest}: it is damaged.")
        return ticket

    def to_bytes(self) -> bytes:
        """Returns the table as an Arrow IPC file."""
        sink = io.BytesIO()
        table = self.to_arrow()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Ticket:
        """Returns the ticket of an Arrow IPC file's bytes.

        Raises:
            ValueError: If they are not a whole ticket.
        """
        try:
            with pa.ipc.open_file(pa.BufferReader(data)) as reader:
                table = reader.read_all()
            table.validate(full=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
            raise ValueError(f"the ticket must be a whole Arrow file; it is damaged: {error}.") from error
        return Ticket.from_arrow(table)

    def save(self, path: str | Path) -> None:
        """Writes the ticket to a local file."""
        Path(path).write_bytes(self.to_bytes())

    @staticmethod
    def load(path: str | Path) -> Ticket:
        """Reads a ticket from a local file.

        Raises:
            ValueError: If the file is not a whole ticket.
        """
        return Ticket.from_bytes(Path(path).read_bytes())

    def _rows(self) -> list[dict[str, Any]]:
        return [_encode(name, tensor, self._masks.get(name)) for name, tensor in self._state.items()]


def _owned(tensor: Tensor) -> Tensor:
    """A contiguous CPU copy: a view would drag its whole storage along, and must not change under the ticket."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _encode(name: str, tensor: Tensor, mask: Tensor | None) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"the type of {name!r} must be one of {', '.join(_DTYPES)}; got {dtype}.")
    active = tensor.reshape(-1) if mask is None else tensor[mask]
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": dtype,
        "mask": None if mask is None else np.packbits(mask.reshape(-1).numpy(), bitorder="little").tobytes(),
        "values": active.contiguous().view(torch.uint8).numpy().tobytes(),
    }


def _decode(row: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    name, shape = row["name"], row["shape"]
    if row["dtype"] not in _DTYPES or any(size < 0 for size in shape):
        raise ValueError(f"tensor {name!r} must have a known type and shape; got {row['dtype']} and {shape}.")
    dtype, num_positions = _DTYPES[row["dtype"]], math.prod(shape)
    mask = None
    num_values = num_positions
    if row["mask"] is not None:
        if len(row["mask"]) != (num_positions + 7) // 8:
            raise ValueError(f"the mask of {name!r} must hold {num_positions} bits; got {len(row['mask'])} bytes.")
        bits = np.unpackbits(np.frombuffer(row["mask"], np.uint8), count=num_positions, bitorder="little")
        mask = torch.from_numpy(bits.astype(bool)).view(shape)
        num_values = int(mask.sum())
    if len(row["values"]) != num_values * dtype.itemsize:
        raise ValueError(f"{name!r} must hold {num_values} values of {row['dtype']}; got {len(row['values'])} bytes.")
    values = torch.empty(num_values, dtype=dtype)
    values.view(torch.uint8).copy_(torch.from_numpy(np.frombuffer(row["values"], np.uint8).copy()))
    if mask is None:
        return values.view(shape), None
    tensor = torch.zeros(shape, dtype=dtype)
    tensor[mask] = values
    return tensor, mask
