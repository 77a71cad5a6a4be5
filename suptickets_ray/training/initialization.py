"""Initial weights other than those of the model's builder."""

from __future__ import annotations

import torch
from torch import Generator
from torch.nn import Module
from torch.nn.modules.conv import _ConvNd

from suptickets_ray.sparse import Sparsifier

INITIALIZATIONS: dict[str, str] = {
    "default": "the initial weights of the model's builder",
    "kaiming_fan_in": "convolutions normal with variance 2 / fan_in; other weights from the builder",
    "kaiming_fan_out": "convolutions normal with variance 2 / fan_out; other weights from the builder",
    "sparse_fan_in": "normal with variance 1 / (3 * fan_in * layer density)",
}

KAIMING_MODES = {"kaiming_fan_in": "fan_in", "kaiming_fan_out": "fan_out"}


def initialize_kaiming(model: Module, mode: str, generator: Generator) -> None:
    """Redraws the weights of all convolutions from a normal of variance 2 / `mode`.

    Args:
        model: The network.
        mode: "fan_in" or "fan_out".
        generator: Source of the weights, on the CPU.

    Raises:
        ValueError: If the network has no convolution.

    Source: He et al., 1502.01852, section 2.2; "fanin" of the published ImageNet commands.
    """
    convolutions = [module for module in model.modules() if isinstance(module, _ConvNd)]
    if not convolutions:
        raise ValueError(f"model.initialization kaiming_{mode} has no effect on a network without convolutions.")
    for module in convolutions:
        drawn = torch.empty(module.weight.shape)
        torch.nn.init.kaiming_normal_(drawn, mode=mode, nonlinearity="relu", generator=generator)  # type: ignore[arg-type]
        module.weight.data.copy_(drawn)


@torch.no_grad()
def initialize_sparse(sparsifier: Sparsifier, generator: Generator) -> None:
    """Redraws every masked weight from a normal of variance 1 / (3 * fan_in * density of its layer).

    The variance is that of torch's default for linear layers, with only a unit's active weights counted.

    Source: Evci et al., 2010.03533, section 3.1 (there with variance 2 / fan_in).
    """
    masks = sparsifier.masks
    for name, parameter in sparsifier.parameters.items():
        mask = masks[name]
        fan_in = parameter[0].numel() * float(mask.sum()) / mask.numel()
        drawn = torch.randn(parameter.shape, generator=generator) / (3 * fan_in) ** 0.5
        parameter.copy_(drawn.to(parameter.device).masked_fill(~mask.to(parameter.device), 0))
