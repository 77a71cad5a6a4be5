"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(
    sample_shape: Sequence[int], num_classes: int, widths: Sequence[int] = (128, 128), batchnorm: bool = True
) -> nn.Module:
    """Returns linear layers with BatchNorm and ReLU between them, and logits (batch, num_classes).

    Args:
        sample_shape: Shape of one input; it is flattened.
        num_classes: Number of classes.
        widths: Units of the hidden layers, at least one.
        batchnorm: Whether BatchNorm, rather than a bias, follows the weights of each hidden layer.

    Raises:
        ValueError: If there is no hidden layer or one has no units.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"model.options.widths must be a list of numbers above 0; got {list(widths)}.")
    layers = hidden_layers([math.prod(sample_shape), *widths], batchnorm)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], num_classes))


def cifar_mlp(
    sample_shape: Sequence[int], num_classes: int, widths: Sequence[int] = (4000, 1000, 4000), batchnorm: bool = True
) -> nn.Module:
    """MLP for CIFAR: hidden layers of 4000, 1000 and 4000, 20,328,000 weights for images of 3x32x32 and 10 classes.

    Args, errors and shapes are those of `mlp`.

    Source: Mocanu et al., 1707.04780, the MLP for CIFAR-10, with ReLU and BatchNorm instead of SReLU and dropout.
    """
    return mlp(sample_shape, num_classes, widths, batchnorm)


def hidden_layers(sizes: Sequence[int], batchnorm: bool = True) -> list[nn.Module]:
    """Returns a linear layer from each size to the next, with weights (next, size), each followed by ReLU.

    Args:
        sizes: Number of inputs, then units of each layer.
        batchnorm: Whether BatchNorm precedes ReLU; its shift makes a bias of the linear layer redundant.
    """
    layers: list[nn.Module] = []
    for num_inputs, num_outputs in pairwise(sizes):
        layers.append(nn.Linear(num_inputs, num_outputs, bias=not batchnorm))
        layers += [nn.BatchNorm1d(num_outputs)] if batchnorm else []
        layers.append(nn.ReLU())
    return layers
