"""A ticket as a value, and as a table of one row per tensor."""

from __future__ import annotations

import io
import json
import math
import uuid
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from suptickets_ray.sparse.masks import true_positions
from suptickets_ray.tickets.arrow import SCHEMA, decode, digest_of_rows, encode, read_table, seal
from suptickets_ray.tickets.masked_values import MaskedValues, TicketTensor

FORMAT_VERSION = 1
_METADATA_KEY = b"suptickets_ray.ticket"


class Ticket:
    """Weights, masks, buffers and provenance at the end of a cycle. A value: nothing in it changes after it is made.

    Of masked tensors only the active entries are held.
    """

    def __init__(self, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Copies the tensors to the CPU.

        Args:
            state: Parameters and buffers by name, as `Module.state_dict()` gives them.
            masks: Bool mask of each sparse weight, of the weight's shape.
            provenance: Where the ticket comes from, as JSON values: run, chain, cycle, seed, digests.

        Raises:
            ValueError: If a mask belongs to no tensor, has another shape, a weight is not 0 off its mask, or the
                provenance is no JSON.
        """
        for name, mask in masks.items():
            if name not in state or state[name].shape != mask.shape:
                found = tuple(state[name].shape) if name in state else "no such tensor"
                raise ValueError(f"the mask of {name!r} must have its tensor's shape {tuple(mask.shape)}; got {found}.")
        self._parts: dict[str, TicketTensor] = {
            name: _gathered(name, tensor, masks[name]) if name in masks else _owned(tensor)
            for name, tensor in state.items()
        }
        try:
            # As a reader gets it: JSON turns tuples into lists and keys into text.
            self._provenance: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"provenance must be JSON values; {error}.") from error

    @classmethod
    def of_parts(cls, parts: Mapping[str, TicketTensor], provenance: Mapping[str, Any]) -> Ticket:
        """Returns a ticket of these tensors without copying them. The caller must not change them afterwards."""
        ticket = cls({}, {}, provenance)
        ticket._parts = dict(parts)
        return ticket

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        masked: Collection[str] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Ticket:
        """Returns the ticket of a network that another program trained. Weights that are not 0 are active.

        Args:
            state: Parameters and buffers by name, as `Module.state_dict()` gives them.
            masked: Names of the masked tensors; by default all floating-point tensors of 2 or more dimensions. Tickets
                are superposed only if the same tensors are masked in all.
            provenance: Where the network comes from, as JSON values.

        Raises:
            ValueError: If `masked` names no tensor of the state, or the provenance is no JSON.
        """
        if masked is None:
            masked = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.ndim >= 2]
        if unknown := [name for name in masked if name not in state]:
            raise ValueError(f"masked must name tensors of the state; {unknown[0]!r} is none of them.")
        return cls(state, {name: state[name] != 0 for name in masked}, provenance or {})

    @property
    def parts(self) -> Mapping[str, TicketTensor]:
        """The tensors by name; masked ones hold their active values. Read-only."""
        return self._parts

    def state_dict(self) -> dict[str, Tensor]:
        """Returns a copy of all tensors by name, for `Module.load_state_dict`."""
        return {
            name: part.dense() if isinstance(part, MaskedValues) else part.clone() for name, part in self._parts.items()
        }

    @property
    def masks(self) -> dict[str, Tensor]:
        """A copy of the bool masks by name, each of its weight's shape."""
        return {name: part.mask() for name, part in self._parts.items() if isinstance(part, MaskedValues)}

    @property
    def provenance(self) -> dict[str, Any]:
        """A copy of the provenance."""
        return dict(self._provenance)

    @property
    def num_active(self) -> int:
        """The number of active weights of all masked tensors."""
        return sum(len(part.positions) for part in self._parts.values() if isinstance(part, MaskedValues))

    @property
    def num_maskable(self) -> int:
        """The number of weights of all masked tensors."""
        return sum(math.prod(part.shape) for part in self._parts.values() if isinstance(part, MaskedValues))

    @cached_property
    def density(self) -> float:
        """The fraction of active weights in the masked tensors, in [0, 1]; 1 if none is masked."""
        return self.num_active / self.num_maskable if self.num_maskable else 1.0

    @cached_property
    def is_finite(self) -> bool:
        """Whether all tensors are finite. Those of a diverged cycle are not."""
        entries = (part.values if isinstance(part, MaskedValues) else part for part in self._parts.values())
        return all(bool(some.isfinite().all()) for some in entries if some.is_floating_point())

    @cached_property
    def digest(self) -> str:
        """The sha256 of names, shapes, types, masks and active values; independent of the provenance."""
        return digest_of_rows(self._rows())

    def to_arrow(self) -> pa.Table:
        """Returns the ticket as a table of `SCHEMA`, with version, digest and provenance as schema metadata."""
        metadata = {"version": FORMAT_VERSION, "digest": self.digest, "provenance": self._provenance}
        metadata["seal"] = seal(metadata)
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
            version, digest, provenance = metadata["version"], metadata["digest"], dict(metadata["provenance"])
            sealed = metadata.pop("seal", None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the ticket's metadata must be readable; it is damaged: {error!r}.") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"the ticket's version must be {FORMAT_VERSION}; got {version}. Update suptickets_ray.")
        if sealed != seal(metadata):
            raise ValueError("the ticket's metadata must be as it was written; it is damaged.")
        rows = table.to_pylist()
        try:
            parts = {row["name"]: decode(row) for row in rows}
        # A missing value, or a shape that torch does not support.
        except (TypeError, OverflowError, RuntimeError) as error:
            raise ValueError(f"the ticket's rows must be whole; they are damaged: {error}.") from error
        if len(parts) != len(rows):
            raise ValueError("the ticket must hold each tensor once; it is damaged.")
        if (found := digest_of_rows(rows)) != digest:
            raise ValueError(f"the ticket's content must have the digest {digest}; got {found}: it is damaged.")
        ticket = Ticket.of_parts(parts, provenance)
        ticket.digest = digest
        return ticket

    @staticmethod
    def some_of(table: pa.Table, names: Collection[str]) -> Ticket:
        """Returns some tensors of a table that was made or checked in memory; it is not checked again.

        Args:
            table: A table that `to_arrow` returned in this Ray cluster.
            names: Names of the tensors. The time depends on their size, not on the size of the ticket.
        """
        rows = table.filter(pc.is_in(table["name"], value_set=pa.array(sorted(names)))).to_pylist()
        return Ticket.of_parts({row["name"]: decode(row) for row in rows}, {})

    @staticmethod
    def provenance_of(table: pa.Table) -> dict[str, Any]:
        """Returns the provenance of a table that `to_arrow` made, without reading its tensors."""
        return dict(json.loads((table.schema.metadata or {})[_METADATA_KEY])["provenance"])

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
            table = read_table(data)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"the ticket must be a whole Arrow file; it is damaged: {error}.") from error
        return Ticket.from_arrow(table)

    def save(self, path: str | Path) -> None:
        """Writes the ticket to a local file. After a crash, the file is complete: the old one or the new one."""
        target = Path(path).absolute()
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(self.to_bytes())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @staticmethod
    def load(path: str | Path) -> Ticket:
        """Reads a ticket from a local file.

        Raises:
            ValueError: If the file is not a whole ticket.
        """
        return Ticket.from_bytes(Path(path).read_bytes())

    def _rows(self) -> Iterator[dict[str, Any]]:
        return (encode(name, part) for name, part in self._parts.items())


def overlap(first: Ticket, second: Ticket) -> float:
    """Returns the fraction of the positions active in either ticket that are active in both, in [0, 1].

    The Jaccard index of the masks; 1 for two tickets without masked tensors. Tickets must be of one model.
    """
    both = either = 0
    for name, part in first.parts.items():
        other = second.parts[name]
        if isinstance(part, MaskedValues) and isinstance(other, MaskedValues):
            shared = len(np.intersect1d(part.positions.numpy(), other.positions.numpy(), assume_unique=True))
            both += shared
            either += len(part.positions) + len(other.positions) - shared
    return both / either if either else 1.0


def _owned(tensor: Tensor) -> Tensor:
    """Returns a contiguous CPU copy. A view would keep its whole storage alive, and could be changed through it."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _gathered(name: str, tensor: Tensor, mask: Tensor) -> MaskedValues:
    flat = tensor.detach().cpu().reshape(-1)
    positions = true_positions(mask.detach().cpu().bool())
    values = flat[positions]
    surplus = int(torch.count_nonzero(flat)) - int(torch.count_nonzero(values))
    if surplus:
        raise ValueError(f"{name!r} must be 0 off its mask; got {surplus} other values there.")
    return MaskedValues(tuple(tensor.shape), positions, values)
