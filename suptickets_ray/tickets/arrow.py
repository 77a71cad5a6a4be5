"""A tensor as a row of an Arrow table: active values only, bits for the mask, no pickle."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

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


@dataclass(frozen=True)
class SparseTensor:
    """A masked tensor by its active entries alone."""

    shape: tuple[int, ...]
    positions: Tensor
    """Flat indices of the active entries, int64 (count,), ascending."""
    values: Tensor
    """The active entries, (count,)."""

    def dense(self) -> Tensor:
        """Returns the tensor, of `shape`, 0 where nothing is active."""
        flat = torch.zeros(math.prod(self.shape), dtype=self.values.dtype)
        return flat.index_copy_(0, self.positions, self.values).view(self.shape)

    def mask(self) -> Tensor:
        """Returns the bool mask, of `shape`."""
        flat = torch.zeros(math.prod(self.shape), dtype=torch.bool)
        return flat.index_fill_(0, self.positions, True).view(self.shape)


Part = Tensor | SparseTensor


def seal(metadata: Mapping[str, Any]) -> str:
    """Returns the sha256 of version, digest and provenance."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def digest_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns the sha256 of names, shapes, types, masks and active values."""
    summary = hashlib.sha256()
    for row in rows:
        header = [row["name"], row["shape"], row["dtype"], row["mask"] is not None]
        for part in (json.dumps(header).encode(), row["mask"] or b"", row["values"]):
            summary.update(len(part).to_bytes(8, "little"))
            summary.update(part)
    return summary.hexdigest()


def encode(name: str, part: Part) -> dict[str, Any]:
    """Returns the row of `SCHEMA` that holds a tensor. Raises ValueError on a type that no row can hold."""
    values = part.values if isinstance(part, SparseTensor) else part.reshape(-1)
    dtype = str(values.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"the type of {name!r} must be one of {', '.join(_DTYPES)}; got {dtype}.")
    mask = None
    if isinstance(part, SparseTensor):
        mask = np.packbits(part.mask().view(-1).numpy(), bitorder="little").tobytes()
    return {
        "name": name,
        "shape": list(part.shape),
        "dtype": dtype,
        "mask": mask,
        "values": values.contiguous().view(torch.uint8).numpy().tobytes(),
    }


def decode(row: Mapping[str, Any]) -> Part:
    """Returns the tensor of a row of `SCHEMA`.

    Raises:
        ValueError: If shape, type, mask and values disagree.
        TypeError or OverflowError: If one of them is no such thing.
    """
    name, shape = row["name"], row["shape"]
    if row["dtype"] not in _DTYPES or any(size < 0 for size in shape):
        raise ValueError(f"tensor {name!r} must have a known type and shape; got {row['dtype']} and {shape}.")
    dtype, num_positions = _DTYPES[row["dtype"]], math.prod(shape)
    positions = None
    num_values = num_positions
    if row["mask"] is not None:
        if len(row["mask"]) != (num_positions + 7) // 8:
            raise ValueError(f"the mask of {name!r} must hold {num_positions} bits; got {len(row['mask'])} bytes.")
        bits = np.unpackbits(np.frombuffer(row["mask"], np.uint8), bitorder="little")
        if bits[num_positions:].any():
            raise ValueError(f"the mask of {name!r} must end with its last weight; there are bits behind it.")
        positions = torch.from_numpy(np.flatnonzero(bits[:num_positions].view(np.bool_)))
        num_values = len(positions)
    if len(row["values"]) != num_values * dtype.itemsize:
        raise ValueError(f"{name!r} must hold {num_values} values of {row['dtype']}; got {len(row['values'])} bytes.")
    values = torch.empty(num_values, dtype=dtype)
    values.view(torch.uint8).copy_(torch.from_numpy(np.frombuffer(row["values"], np.uint8).copy()))
    return values.view(shape) if positions is None else SparseTensor(tuple(shape), positions, values)
