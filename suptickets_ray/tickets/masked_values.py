"""The common form of a masked tensor: its active values and their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedValues:
    """The active entries of a masked tensor."""

    shape: tuple[int, ...]
    positions: Tensor
    """Flat indices of the active entries, int64 (count,), ascending."""
    values: Tensor
    """The active entries, (count,)."""

    def dense(self) -> Tensor:
        """Returns the dense tensor, of `shape`, 0 at inactive positions."""
        flat = self.values.new_zeros(math.prod(self.shape))
        return flat.index_copy_(0, self.positions.to(flat.device), self.values).view(self.shape)

    def mask(self) -> Tensor:
        """Returns the bool mask, of `shape`."""
        flat = torch.zeros(math.prod(self.shape), dtype=torch.bool)
        return flat.index_fill_(0, self.positions, True).view(self.shape)


TicketTensor = Tensor | MaskedValues
"""A dense tensor, or the active values of a masked one."""
