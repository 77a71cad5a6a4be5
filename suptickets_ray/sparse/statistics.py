"""Statistics of sparsity, for logs and papers: counts, FLOPs, exploration, distance, dead channels.

FLOPs are counted as is usual: 2 (multiply and add) for each use of an active weight in linear and convolution layers.
Biases, normalization, activations and the products inside attention are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from suptickets_ray.sparse.maskable import unwrap
from suptickets_ray.sparse.masks import Tensors, num_true
from suptickets_ray.sparse.sparsifier import Sparsifier

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerSparsity:
    """One row of `layer_table`."""

    name: str
    shape: tuple[int, ...]
    num_active: int
    num_weights: int
    dead_channels: int
    """Output channels without active connections."""

    @property
    def density(self) -> float:
        """Fraction of active weights, in [0, 1]."""
        return self.num_active / self.num_weights


def layer_table(masks: Tensors) -> list[LayerSparsity]:
    """Returns shape, counts, density and dead channels of every layer, in the model's order."""
    dead = dead_channels(masks)
    return [
        LayerSparsity(name, tuple(mask.shape), num_true(mask), mask.numel(), dead[name]) for name, mask in masks.items()
    ]


def dead_channels(masks: Tensors, output_dimensions: Mapping[str, int] | None = None) -> dict[str, int]:
    """Returns the number of output channels without active connections for each layer.

    Args:
        masks: Bool masks by name.
        output_dimensions: Dimension of a layer's output channels if it is not 0: 1 for transposed convolutions, as
            `maskable.output_dimensions` returns it.
    """
    dimensions = output_dimensions or {}
    alive = {name: mask.movedim(dimensions.get(name, 0), 0).flatten(1).any(dim=1) for name, mask in masks.items()}
    return {name: channels.numel() - num_true(channels) for name, channels in alive.items()}


def explored_fraction(explored: Tensors) -> float:
    """Returns ITOP's R_s: the fraction of positions that have ever been active, in [0, 1].

    Args:
        explored: `Sparsifier.explored`.

    Source: ITOP, 2102.02887, section 3.
    """
    total = sum(mask.numel() for mask in explored.values())
    return sum(num_true(mask) for mask in explored.values()) / total if total else 1.0


def mask_distance(first: Tensors, second: Tensors) -> float:
    """Returns the distance of two topologies: 1 - |both| / |either|, 0 for equal masks and 1 for disjoint ones.

    Raises:
        ValueError: If the masks are not of the same layers and shapes.
    """
    if {n: m.shape for n, m in first.items()} != {n: m.shape for n, m in second.items()}:
        raise ValueError("mask_distance must be given masks of one model; these differ in names or shapes.")
    both = sum(num_true(first[name] & second[name]) for name in first)
    either = sum(num_true(first[name] | second[name]) for name in first)
    return 1 - both / either if either else 0.0


@dataclass(frozen=True)
class Uses:
    """Number of uses of each layer's weights for one example."""

    sizes: Mapping[str, int]
    """Number of weights of each layer."""
    per_example: Mapping[str, float]
    """Output positions of a convolution, rows of a linear layer, for one example."""

    def dense_flops(self) -> float:
        """FLOPs of a forward pass of one example with all weights."""
        return sum(2 * self.sizes[name] * self.per_example[name] for name in self.sizes)

    def forward_flops(self, counts: Mapping[str, float]) -> float:
        """FLOPs of a forward pass of one example.

        Args:
            counts: Active weights of the masked layers, e.g. `Sparsifier.counts`; other layers are dense.
        """
        return sum(2 * counts.get(name, size) * self.per_example[name] for name, size in self.sizes.items())

    def training_flops(self, sparsifier: Sparsifier, batch_size: int) -> float:
        """FLOPs of the training so far: a forward and twice that backward in each step, over the active weights.

        A step that needs dense gradients also computes those of the inactive weights. The gradients with respect to the
        first layer's inputs are not needed, but are counted, as is usual.

        Args:
            sparsifier: The sparsifier of the training.
            batch_size: Examples of a step.

        Source: RigL, 1911.11134, appendix H.
        """
        active, inactive = sparsifier.active_steps, sparsifier.dense_gradient_steps
        total = 0.0
        for name, size in self.sizes.items():
            used = 3 * active.get(name, size * sparsifier.num_steps) + inactive.get(name, 0)
            total += 2 * used * self.per_example[name] * batch_size
        return total

    def training_ratio(self, sparsifier: Sparsifier) -> float:
        """FLOPs of the training so far over those of dense training."""
        dense = 3 * sparsifier.num_steps * self.dense_flops()
        return self.training_flops(sparsifier, 1) / dense if dense else math.nan

    def forward_ratio(self, counts: Mapping[str, float]) -> float:
        """FLOPs of a forward pass over those of the dense network."""
        return self.forward_flops(counts) / self.dense_flops()


def count_uses(model: Module, *inputs: Any) -> Uses:
    """Runs the model once, in evaluation mode and without gradients, and counts how often each weight is used.

    Linear, convolution and transposed convolution layers and the projections of MultiheadAttention are counted, under
    the names of `named_parameters`; a shared weight's uses add up. With model and inputs on the "meta" device, nothing
    is computed.

    Args:
        model: Any module; wrappers are removed.
        inputs: One batch; the first dimension of the first input counts the examples.
    """
    model = unwrap(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    paths = {module: path for path, module in model.named_modules()}
    sizes: dict[str, int] = {}
    totals: dict[str, float] = {}

    def add(module: Module, weight: Tensor, uses: float) -> None:
        # A parametrized weight is recomputed, and has no name in named_parameters.
        name = names.get(id(weight), f"{paths[module]}.weight".removeprefix("."))
        sizes[name] = weight.numel()
        totals[name] = totals.get(name, 0.0) + uses

    def count(module: Module, arguments: Sequence[Any], options: Mapping[str, Any], output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            given = {**dict(zip(("query", "key", "value"), arguments, strict=False)), **options}
            rows = {part: given[part].numel() / given[part].shape[-1] for part in ("query", "key", "value")}
            if module.in_proj_weight is not None:
                add(module, module.in_proj_weight, sum(rows.values()) / 3)
            else:
                add(module, module.q_proj_weight, rows["query"])
                add(module, module.k_proj_weight, rows["key"])
                add(module, module.v_proj_weight, rows["value"])
            add(module, module.out_proj.weight, rows["query"])
        elif isinstance(module, nn.Linear):
            add(module, module.weight, output.numel() / output.shape[-1])
        elif isinstance(module, _CONVOLUTIONS):
            add(module, module.weight, output.numel() / module.out_channels)
        elif isinstance(module, _TRANSPOSED):
            add(module, module.weight, arguments[0].numel() / module.in_channels)

    kinds = (nn.MultiheadAttention, nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
    hooks = [
        module.register_forward_hook(count, with_kwargs=True) for module in model.modules() if isinstance(module, kinds)
    ]
    try:
        with _evaluating(model), torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Uses(sizes, {name: total / len(inputs[0]) for name, total in totals.items()})


@contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """Sets evaluation mode, and restores each module's mode on exit."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
