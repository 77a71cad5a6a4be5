"""An optimizer's state of a sparse layer: gathered at the active positions, or in the weight's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from suptickets_ray.sparse.layer_mask import LayerMask


def gather_state(state: Mapping[str, Any], parameter: Parameter, layer_mask: LayerMask) -> dict[str, Any]:
    """Returns the state with every tensor of the weight's shape gathered at the active positions, (active,)."""
    return {
        key: layer_mask.gather(value) if isinstance(value, Tensor) and value.shape == parameter.shape else value
        for key, value in state.items()
    }


def spread_state(state: Mapping[str, Any], parameter: Parameter, layer_mask: LayerMask) -> dict[str, Any]:
    """Returns the state with every gathered tensor in the weight's shape, 0 off the mask."""
    return {key: spread_value(value, parameter, layer_mask) for key, value in state.items()}


def spread_value(value: Any, parameter: Parameter, layer_mask: LayerMask) -> Any:
    """Returns a gathered tensor in the weight's shape, 0 off the mask; any other value as it is."""
    if not isinstance(value, Tensor) or value.shape != (layer_mask.count,) or layer_mask.positions is None:
        return value
    # In the weight's memory layout, because fused optimizers iterate over both in parallel.
    dense = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
    layer_mask.scatter_(dense, value)
    return dense


def state_tensors(optimizer: Optimizer, parameter: Parameter) -> Iterator[Tensor]:
    """Yields every tensor of the weight's shape in an optimizer's state of the weight."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            yield value
