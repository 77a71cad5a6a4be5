"""What a network's masks have been so far: positions that were ever active, and the cost of all steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from suptickets_ray.sparse.layer_mask import LayerMask
from suptickets_ray.sparse.masks import Tensors, pack, unpack


class MaskHistory:
    """Explored positions and counters of each layer."""

    def __init__(self, masks: Tensors) -> None:
        """Starts with the initial bool masks."""
        self._explored = {name: pack(mask) for name, mask in masks.items()}
        self.active_steps = dict.fromkeys(masks, 0)
        """Sum over the steps so far of each layer's number of active weights."""
        self.dense_gradient_steps = dict.fromkeys(masks, 0)
        """Sum over the steps so far that needed dense gradients of each layer's number of inactive weights."""

    def explored(self, weights: Tensors) -> dict[str, Tensor]:
        """Returns bool masks, on the CPU, of the positions that have ever been active."""
        return {name: unpack(bits, weights[name].shape) for name, bits in self._explored.items()}

    def add_masks(self, masks: Tensors) -> None:
        """Adds the positions of new masks to the explored ones."""
        for name, mask in masks.items():
            self._explored[name] |= pack(mask)

    def count_step(self, layer_masks: Mapping[str, LayerMask]) -> None:
        """Counts one step with these masks."""
        for name, layer_mask in layer_masks.items():
            self.active_steps[name] += layer_mask.count

    def count_dense_gradients(self, layer_masks: Mapping[str, LayerMask], names: Iterable[str]) -> None:
        """Counts one dense gradient of each named layer."""
        for name in names:
            self.dense_gradient_steps[name] += layer_masks[name].shape.numel() - layer_masks[name].count

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the history, with explored positions as packed bits."""
        return {
            "explored": {name: bits.clone() for name, bits in self._explored.items()},
            "active_steps": dict(self.active_steps),
            "dense_gradient_steps": dict(self.dense_gradient_steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the history from `state_dict()`; other entries of the mapping are not read."""
        self._explored = {name: bits.cpu().clone() for name, bits in state["explored"].items()}
        self.active_steps = dict(state["active_steps"])
        self.dense_gradient_steps = dict(state["dense_gradient_steps"])
