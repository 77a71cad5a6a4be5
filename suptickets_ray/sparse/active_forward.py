"""Forward passes that compute with active weights alone, in the place of those of torch's modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.functional import linear, scaled_dot_product_attention

from suptickets_ray.sparse.active_weights import ActiveWeights, GradientForm, active_product

Convolution = nn.Conv1d | nn.Conv2d


class Source(Protocol):
    """Where a forward pass finds the active weights."""

    def active_weights(self, name: str) -> ActiveWeights | None:
        """Returns those of a parameter; None if it is multiplied as a dense one."""
        ...

    def observe(self, name: str, inputs: Tensor, is_linear: bool) -> None:
        """Called with the inputs (n, in, positions) of a layer that computes with its dense weight."""
        ...

    def gradient_form(self) -> GradientForm:
        """Returns the form that gradients of weights need now."""
        ...


class ActiveForward:
    """Stands as the attribute `forward` of one module; hooks run as always, because `Module.__call__` calls it.

    Where it cannot compute with active weights alone, it calls the class's own forward pass with the dense weight,
    which gives the same numbers: in torch.compile, under autocast, for other types and devices than the weight's. A
    copied or pickled module always does so, because no Sparsifier keeps the copy sparse.
    """

    def __init__(self, module: Module, names: Mapping[str, str], source: Source | None = None) -> None:
        """Holds a module and the masked parameters that it computes with.

        Args:
            module: Of a type in `FORWARDS`.
            names: Name of a parameter in the module, to its name in the model.
            source: Where the active weights are found; None to compute with dense ones.
        """
        self.module, self._names, self._source = module, dict(names), source

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles without the source of active weights."""
        return ActiveForward, (self.module, self._names)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Computes the module's output."""
        if not torch.compiler.is_compiling() and self._source is not None:
            result = FORWARDS[type(self.module)](self, *arguments, **options)
            if result is not None:
                return result
        return type(self.module).forward(self.module, *arguments, **options)

    def product(self, inputs: Tensor, leaf: str, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Returns weight @ inputs[n] + bias for each n, or None if it cannot be computed with active weights alone.

        Args:
            inputs: (n, in, positions).
            leaf: Name of the weight in the module.
            weight: The weight (out, ...).
            bias: (out,).
        """
        active = self.active_weights(inputs, leaf, weight)
        if active is None or self._source is None:
            return None
        return active_product(inputs, weight, bias, active, self._source.gradient_form)

    def active_weights(self, inputs: Tensor, leaf: str, weight: Tensor) -> ActiveWeights | None:
        """Returns what `product` computes with, or None if it cannot."""
        source = self._source
        if source is None or leaf not in self._names or torch.is_autocast_enabled("cpu"):
            return None
        if inputs.device.type != "cpu" or inputs.dtype != weight.dtype or inputs.numel() == 0:
            return None
        if inputs.shape[1] != weight.shape[1:].numel():
            return None
        active = source.active_weights(self._names[leaf])
        if active is None:
            source.observe(self._names[leaf], inputs, not isinstance(self.module, Convolution))
        return active

    def rows_product(self, inputs: Tensor, leaf: str, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Returns `linear(inputs, weight, bias)`, (..., in) to (..., out), or None as `product` does."""
        if inputs.ndim == 0:
            return None
        outputs = self.product(inputs.reshape(-1, inputs.shape[-1], 1), leaf, weight, bias)
        return None if outputs is None else outputs.squeeze(2).reshape(*inputs.shape[:-1], len(weight))


def _linear(forward: ActiveForward, inputs: Tensor) -> Tensor | None:
    module = forward.module
    assert isinstance(module, nn.Linear)
    return forward.rows_product(inputs, "weight", module.weight, module.bias)


def _convolution(forward: ActiveForward, inputs: Tensor) -> Tensor | None:
    """With a kernel of size 1: (n, in, ...) to (n, out, ...), a product at each position that the stride keeps."""
    module = forward.module
    assert isinstance(module, Convolution)
    if inputs.ndim != module.weight.ndim:
        return None
    kept = inputs
    for dimension, step in enumerate(module.stride, start=2):
        kept = kept if step == 1 else kept.index_select(dimension, torch.arange(0, kept.shape[dimension], step))
    outputs = forward.product(kept.flatten(2), "weight", module.weight, module.bias)
    return None if outputs is None else outputs.unflatten(2, kept.shape[2:])


def _attention(
    forward: ActiveForward,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, None] | None:
    """Self-attention whose weights nobody reads, of `nn.MultiheadAttention`; other calls compute with dense weights."""
    module = forward.module
    assert isinstance(module, nn.MultiheadAttention)
    if need_weights or query.ndim != 3 or query is not key or key is not value:
        return None
    if is_causal and attn_mask is None:
        return None
    rows = query if module.batch_first else query.transpose(0, 1)
    output = module.out_proj
    columns = rows.reshape(-1, rows.shape[-1], 1)
    # The output's projection has inputs of the same shape.
    layers = ("in_proj_weight", module.in_proj_weight), ("out_proj.weight", output.weight)
    found = [forward.active_weights(columns, leaf, weight) for leaf, weight in layers]
    if not any(found):
        return None
    mask = _attention_mask(query, module, key_padding_mask, attn_mask, is_causal)
    projected = forward.rows_product(rows, "in_proj_weight", module.in_proj_weight, module.in_proj_bias)
    if projected is None:
        projected = linear(rows, module.in_proj_weight, module.in_proj_bias)
    batch, length, size = rows.shape
    heads = projected.view(batch, length, 3, module.num_heads, size // module.num_heads).permute(2, 0, 3, 1, 4)
    attended = scaled_dot_product_attention(
        heads[0],
        heads[1],
        heads[2],
        attn_mask=mask,
        dropout_p=module.dropout if module.training else 0.0,
        is_causal=is_causal and key_padding_mask is None,
    )
    flat = attended.transpose(1, 2).reshape(batch, length, size)
    result = forward.rows_product(flat, "out_proj.weight", output.weight, output.bias)
    if result is None:
        result = linear(flat, output.weight, output.bias)
    return result if module.batch_first else result.transpose(0, 1), None


def _attention_mask(
    query: Tensor,
    module: nn.MultiheadAttention,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> Tensor | None:
    """Returns both masks as one to add, (batch, heads or 1, length, length); None if there is nothing to mask."""
    total = None
    if attn_mask is not None and not (is_causal and key_padding_mask is None):
        total = _as_summand(attn_mask, query)
        total = total.unflatten(0, (-1, module.num_heads)) if total.ndim == 3 else total[None, None]
    if key_padding_mask is not None:
        padding = _as_summand(key_padding_mask, query)[:, None, None]
        total = padding if total is None else total + padding
    return total


def _as_summand(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -math.inf)


FORWARDS: dict[type[Module], Callable[..., Any]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.MultiheadAttention: _attention,
}
"""Types of modules, exactly, whose forward pass can compute with active weights alone."""
