"""The active weights of one layer as a sparse matrix, and a differentiable product that computes with them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from suptickets_ray.sparse.csr_product import add_sampled, csr_matrix, multiply

_TABLE_SIZE, _LEAST_COLUMNS, _MOST_COLUMNS = 1 << 16, 128, 512
"""Numbers in a table that fits the processor's cache, and the columns of the smallest and the largest table."""

GradientForm = Literal["active", "scattered", "dense"]
"""Form of a weight's gradient: its active values as sparse COO, these in a strided tensor, or all values."""


class ActiveWeights:
    """Positions of the active weights of a layer, in the forms that its three products need.

    The weight (out, ...) is read as a matrix (out, in), with all dimensions but the first in one. Its values are not
    held: they are gathered from the dense weight in each forward pass, so that what others write there is used.
    """

    def __init__(self, positions: Tensor, shape: torch.Size) -> None:
        """Sorts the positions by row and by column.

        Args:
            positions: Flat indices of the active weights, int64 (active,), ascending, on the CPU.
            shape: Shape of the weight.
        """
        self.shape = shape
        num_rows, num_columns = shape[0], shape[1:].numel()
        self._matrix_shape = num_rows, num_columns
        self._positions = positions
        rows, columns = positions.div(num_columns, rounding_mode="floor"), positions.remainder(num_columns)
        self._columns, self._offsets = columns.int(), _offsets(rows, num_rows)
        order = columns.sort(stable=True).indices
        self._order, self._rows_by_column = order.int(), rows[order].int()
        self._offsets_by_column = _offsets(columns, num_columns)
        self._indices = torch.stack(torch.unravel_index(positions, shape))

    def values(self, weight: Tensor) -> Tensor:
        """Returns the active values (active,) of the dense weight."""
        return weight.detach().reshape(-1).index_select(0, self._positions)

    def matrix(self, values: Tensor) -> Tensor:
        """Returns the CSR matrix (out, in) with these values (active,)."""
        return csr_matrix(self._offsets, self._columns, values, self._matrix_shape)

    def transposed(self, values: Tensor) -> Tensor:
        """Returns the transposed CSR matrix (in, out) with these values (active,)."""
        by_column = values.index_select(0, self._order)
        return csr_matrix(self._offsets_by_column, self._rows_by_column, by_column, self._matrix_shape[::-1])

    def sparse_gradient(self, values: Tensor) -> Tensor:
        """Returns a gradient of the weight's shape, sparse COO, that holds the active values (active,) only."""
        return torch.sparse_coo_tensor(self._indices, values, self.shape, check_invariants=False, is_coalesced=True)

    def scattered_gradient(self, values: Tensor) -> Tensor:
        """Returns a strided gradient of the weight's shape with the active values (active,), and 0 elsewhere."""
        return values.new_zeros(self.shape.numel()).index_copy_(0, self._positions, values).view(self.shape)

    def active_gradient(self, gradient: Tensor) -> Tensor:
        """Returns the active values (active,) of a gradient of the weight's shape, sparse or dense."""
        if not gradient.is_sparse:
            return gradient.reshape(-1).index_select(0, self._positions)
        if gradient._indices().data_ptr() == self._indices.data_ptr():
            return gradient._values()
        gradient = gradient.coalesce()
        if torch.equal(gradient._indices(), self._indices):
            return gradient._values()
        return gradient.to_dense().reshape(-1).index_select(0, self._positions)


def active_product(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    active: ActiveWeights,
    gradient_form: Callable[[], GradientForm] = lambda: "active",
) -> Tensor:
    """Returns weight @ inputs[n] + bias for each n, computed with the active weights alone.

    Args:
        inputs: (n, in, positions).
        weight: Dense weight (out, ...) with `in` entries for each output.
        bias: (out,).
        active: The active weights.
        gradient_form: Called in the backward pass; returns the form of the weight's gradient.

    Returns:
        (n, out, positions), contiguous.
    """
    result: Tensor = _ActiveProduct.apply(inputs, weight, bias, active, gradient_form)
    return result


class _ActiveProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        active: ActiveWeights,
        gradient_form: Callable[[], GradientForm],
    ) -> Tensor:
        values = active.values(weight)
        matrix = active.matrix(values)
        outputs = inputs.new_empty(len(inputs), len(weight), inputs.shape[2])
        parts = _parts(inputs.shape, max(matrix.shape))
        kept = None
        for part in parts:
            table = _table(inputs, part)
            _put(outputs, part, multiply(matrix, table, bias))
            # Transposing it again would cost more than to keep one table.
            kept = table if len(parts) == 1 and ctx.needs_input_grad[1] else None
        ctx.save_for_backward(inputs if kept is None else kept, values)
        ctx.shape, ctx.active, ctx.gradient_form = inputs.shape, active, gradient_form
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, values = ctx.saved_tensors
        active: ActiveWeights = ctx.active
        for_inputs = for_weight = for_bias = sums = transposed = None
        form: GradientForm = ctx.gradient_form()
        if ctx.needs_input_grad[0]:
            for_inputs, transposed = gradient.new_empty(ctx.shape), active.transposed(values)
        if ctx.needs_input_grad[1] and form == "dense":
            left = gradient.transpose(0, 1).flatten(1)
            right = inputs if inputs.ndim == 2 else inputs.transpose(0, 1).flatten(1)
            for_weight = (left @ right.t()).view(active.shape)
        elif ctx.needs_input_grad[1]:
            sums = active.matrix(torch.zeros_like(values))
        if for_inputs is not None or sums is not None:
            for part in _parts(ctx.shape, max(gradient.shape[1], ctx.shape[1])):
                table = _table(gradient, part)
                if transposed is not None and for_inputs is not None:
                    _put(for_inputs, part, multiply(transposed, table))
                if sums is not None:
                    add_sampled(sums, table, inputs if inputs.ndim == 2 else _table(inputs, part))
        if sums is not None:
            found = sums.values()
            for_weight = active.sparse_gradient(found) if form == "active" else active.scattered_gradient(found)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum((0, 2))
        return for_inputs, for_weight, for_bias, None, None


def _parts(shape: torch.Size, num_rows: int) -> list[tuple[slice, slice]]:
    """Cuts (n, rows, positions) into parts whose tables fit the cache.

    Args:
        shape: (n, rows, positions).
        num_rows: Rows of the largest table that is in use at the same time.

    Returns:
        For each part its ranges of n and of positions.
    """
    num_images, _, num_positions = shape
    limit = min(max(_TABLE_SIZE // num_rows, _LEAST_COLUMNS), _MOST_COLUMNS)
    group, step = max(limit // max(num_positions, 1), 1), max(min(limit, num_positions), 1)
    return [
        (slice(first, min(first + group, num_images)), slice(start, min(start + step, num_positions)))
        for first in range(0, num_images, group)
        for start in range(0, num_positions, step)
    ]


def _table(tensor: Tensor, part: tuple[slice, slice]) -> Tensor:
    """Returns a part of (n, rows, positions) as a contiguous table (rows, columns), positions varying fastest."""
    images, positions = part
    chosen = tensor[images, :, positions]
    # torch transposes two dimensions in blocks, three element by element.
    table = chosen.squeeze(2).t() if tensor.shape[2] == 1 else chosen.transpose(0, 1).flatten(1)
    return table.contiguous()


def _put(tensor: Tensor, part: tuple[slice, slice], table: Tensor) -> None:
    """Writes a table (rows, columns) into a part of (n, rows, positions)."""
    images, positions = part
    if tensor.shape[2] == 1:
        tensor.squeeze(2)[images] = table.t()
    else:
        tensor[images, :, positions] = table.unflatten(1, (-1, positions.stop - positions.start)).transpose(0, 1)


def _offsets(rows: Tensor, num_rows: int) -> Tensor:
    """Returns where each row begins, int32 (rows + 1,), for the rows of all entries."""
    counts = torch.bincount(rows, minlength=num_rows)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
