"""A tensor as a row of an Arrow table: active values only, bits for the mask, no pickle."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from suptickets_ray.sparse.masks import pack, true_positions, unpack
from suptickets_ray.tickets.masked_values import MaskedValues, TicketTensor

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


_MAGIC = b"ARROW1\0\0"


def read_table(data: bytes) -> pa.Table:
    """Returns the table of an Arrow IPC file with one uncompressed batch of `SCHEMA`, in memory of about its size.

    Raises:
        ValueError: If the file has more batches, another schema, or compressed buffers, which may expand without bound.
        pyarrow.ArrowException or OSError: If it is damaged.
    """
    content = pa.py_buffer(data)
    with pa.ipc.open_file(content) as reader:
        schema, num_batches = reader.schema, reader.num_record_batches
    if not schema.remove_metadata().equals(SCHEMA):
        raise ValueError(f"the table must be a ticket; got columns {schema.names}.")
    if num_batches > 1:
        raise ValueError(f"a ticket must be one record batch; got {num_batches}.")
    # Read message by message: the file's own reader decompresses before anything can be checked.
    batches: list[pa.RecordBatch] = []
    for message in pa.ipc.MessageReader.open_stream(content[len(_MAGIC) :]):
        if message.type != "record batch":
            continue
        if len(batches) == num_batches:
            raise ValueError("a ticket must hold as many record batches as its footer says; it is damaged.")
        if _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("a ticket's buffers must be uncompressed. Write it with Ticket.save.")
        batches.append(pa.ipc.read_record_batch(message, schema))
    if len(batches) != num_batches:
        raise ValueError("a ticket must hold as many record batches as its footer says; it is damaged.")
    table = pa.Table.from_batches(batches, schema)
    table.validate(full=True)
    return table


def _is_compressed(message: bytes) -> bool:
    """Returns whether a record batch's header names a compression.

    Args:
        message: The flatbuffer `Message`, of which pyarrow shows everything but this.

    Raises:
        ValueError: If it is damaged.

    Source: Apache Arrow, format/Message.fbs: field 2 of Message is the header, field 3 of RecordBatch the compression.
    """

    def field(table: int, number: int) -> int:
        """Returns the position of a field, or 0 if it is absent."""
        layout = table - int(struct.unpack_from("<i", message, table)[0])
        if layout < 0 or 4 + 2 * number >= struct.unpack_from("<H", message, layout)[0]:
            return 0
        offset = int(struct.unpack_from("<H", message, layout + 4 + 2 * number)[0])
        return table + offset if offset else 0

    try:
        header = field(int(struct.unpack_from("<I", message, 0)[0]), 2)
        if not header:
            raise ValueError("a ticket's record batch must have a header; it is damaged.")
        return bool(field(header + int(struct.unpack_from("<I", message, header)[0]), 3))
    except struct.error as error:
        raise ValueError(f"a ticket's record batch must have a whole header; it is damaged: {error}.") from error


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


def encode(name: str, part: TicketTensor) -> dict[str, Any]:
    """Returns the row of `SCHEMA` that holds a tensor. Raises ValueError on a type that no row can hold."""
    values = part.values if isinstance(part, MaskedValues) else part.reshape(-1)
    dtype = str(values.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"the type of {name!r} must be one of {', '.join(_DTYPES)}; got {dtype}.")
    mask = pack(part.mask()).numpy().tobytes() if isinstance(part, MaskedValues) else None
    return {
        "name": name,
        "shape": list(part.shape),
        "dtype": dtype,
        "mask": mask,
        "values": values.contiguous().view(torch.uint8).numpy().tobytes(),
    }


def decode(row: Mapping[str, Any]) -> TicketTensor:
    """Returns the tensor of a row of `SCHEMA`.

    Raises:
        ValueError: If shape, type, mask and values disagree.
        TypeError, OverflowError or RuntimeError: If one of them has another type or is out of range.
    """
    name, shape = row["name"], row["shape"]
    if row["dtype"] not in _DTYPES or any(size < 0 for size in shape):
        raise ValueError(f"tensor {name!r} must have a known type and shape; got {row['dtype']} and {shape}.")
    torch.empty(shape, device="meta")  # allocates nothing, and raises if the shape is invalid
    dtype, num_positions = _DTYPES[row["dtype"]], math.prod(shape)
    positions = None
    num_values = num_positions
    if row["mask"] is not None:
        if len(row["mask"]) != (num_positions + 7) // 8:
            raise ValueError(f"the mask of {name!r} must hold {num_positions} bits; got {len(row['mask'])} bytes.")
        if num_positions % 8 and row["mask"][-1] >> num_positions % 8:
            raise ValueError(f"the mask of {name!r} must end with its last weight; there are bits behind it.")
        bits = torch.from_numpy(np.frombuffer(row["mask"], np.uint8).copy())
        positions = true_positions(unpack(bits, (num_positions,)))
        num_values = len(positions)
    if len(row["values"]) != num_values * dtype.itemsize:
        raise ValueError(f"{name!r} must hold {num_values} values of {row['dtype']}; got {len(row['values'])} bytes.")
    values = torch.empty(num_values, dtype=dtype)
    values.view(torch.uint8).copy_(torch.from_numpy(np.frombuffer(row["values"], np.uint8).copy()))
    return values.view(shape) if positions is None else MaskedValues(tuple(shape), positions, values)
