"""A multi-layer perceptron with BatchNorm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(sample_shape: Sequence[int], num_classes: int, widths: Sequence[int] = (128, 128)) -> nn.Module:
    """Returns linear layers with BatchNorm and ReLU between them, and logits (batch, num_classes).

    Args:
        sample_shape: Shape of one input; it is flattened.
        num_classes: Number of classes.
        widths: Units of the hidden layers, at least one.

    Raises:
        ValueError: If there is no hidden layer or one has no units.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"model.options.widths must be a list of numbers above 0; got {list(widths)}.")
    sizes = [math.prod(sample_shape), *widths]
    layers: list[nn.Module] = [nn.Flatten()]
    for num_inputs, num_outputs in pairwise(sizes):
        # BatchNorm's shift makes a bias of the linear layer redundant.
        layers += [nn.Linear(num_inputs, num_outputs, bias=False), nn.BatchNorm1d(num_outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
