"""One layer's mask, and access to the layer's active weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from suptickets_ray.sparse.active_weights import ActiveWeights
from suptickets_ray.sparse.masks import num_true, true_positions

GATHERED_SIZE, GATHERED_DENSITY = 1 << 16, 0.125
"""Minimum size and maximum density of a gathered layer: 8 bytes per position are then at most 1 byte per weight."""


class LayerMask:
    """One layer's mask in the form that costs least: at most 1 byte per weight, nothing for a dense layer."""

    def __init__(self, mask: Tensor, *, computes_active: bool = False) -> None:
        """Converts a bool mask of the weight's shape.

        Args:
            mask: On the weight's device.
            computes_active: Whether the layer computes with its active weights alone.
        """
        self.shape = mask.shape
        self.device = mask.device
        self.count = num_true(mask)
        self.positions: Tensor | None = None
        """Flat indices of the active weights, int64 (count,), of a gathered layer."""
        self.inactive: Tensor | None = None
        """The inverted mask, of a layer that is masked in place."""
        self.active: ActiveWeights | None = None
        """The active weights as a matrix, of a layer that computes with them alone."""
        if computes_active:
            self.positions = true_positions(mask)
            self.active = ActiveWeights(self.positions, mask.shape)
        elif mask.numel() >= GATHERED_SIZE and self.count <= GATHERED_DENSITY * mask.numel():
            self.positions = true_positions(mask)
        elif self.count < mask.numel():
            self.inactive = ~mask

    @property
    def num_bytes(self) -> int:
        """Memory of the mask, in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.positions, self.inactive) if t is not None)

    def mask(self) -> Tensor:
        """Returns the bool mask, of the weight's shape."""
        if self.positions is not None:
            mask = torch.zeros(self.shape.numel(), dtype=torch.bool, device=self.device)
            return mask.index_fill_(0, self.positions, True).view(self.shape)
        if self.inactive is not None:
            return ~self.inactive
        return torch.ones(self.shape, dtype=torch.bool, device=self.device)

    def gather(self, tensor: Tensor) -> Tensor:
        """Returns the active entries (count,) of a tensor of the weight's shape."""
        if self.positions is not None:
            return tensor.reshape(-1).index_select(0, self.positions)
        return tensor.reshape(-1) if self.inactive is None else tensor[~self.inactive]

    def gather_gradient(self, gradient: Tensor) -> Tensor:
        """Returns the active entries (count,) of a gradient of the weight's shape, sparse or dense."""
        if self.active is not None:
            return self.active.active_gradient(gradient)
        return self.gather(gradient.to_dense() if gradient.is_sparse else gradient)

    def scatter_(self, tensor: Tensor, values: Tensor) -> None:
        """Writes values (count,) to the active entries of a tensor of the weight's shape; others do not change."""
        if self.positions is None:
            tensor[self.mask()] = values
        else:
            _write_(tensor, self.positions, values)

    def masked(self, tensor: Tensor) -> Tensor:
        """Returns a copy of a tensor of the weight's shape and layout, 0 off the mask."""
        if self.inactive is not None and tensor.is_contiguous():
            return torch.where(self.inactive, tensor.new_zeros(()), tensor)
        copy = tensor.clone()
        self.fill_(copy)
        return copy

    def fill_(self, tensor: Tensor) -> None:
        """Zeroes a tensor of the weight's shape off the mask. A sparse gradient is already."""
        if tensor.is_sparse:
            return
        if self.positions is not None:
            keep_only_(tensor, self.positions)
        elif self.inactive is not None:
            # Filled, not multiplied: a diverged gradient is NaN, and NaN * 0 would revive a pruned weight.
            tensor.masked_fill_(self.inactive, 0)


def _write_(tensor: Tensor, positions: Tensor, values: Tensor) -> None:
    """Writes values (count,) to flat positions (count,) of a tensor of any layout."""
    if tensor.is_contiguous():
        tensor.view(-1).index_copy_(0, positions, values)
    else:
        tensor.copy_(tensor.reshape(-1).index_copy(0, positions, values).view(tensor.shape))


def keep_only_(tensor: Tensor, positions: Tensor) -> None:
    """Zeroes a tensor except at its flat positions (count,)."""
    values = tensor.reshape(-1).index_select(0, positions)
    tensor.zero_()
    _write_(tensor, positions, values)


def version_of(parameter: Parameter) -> tuple[int, int]:
    """Returns numbers that change when other code writes to the parameter, or replaces its data."""
    return parameter._version, parameter.data_ptr()
