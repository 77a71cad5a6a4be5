"""The two LeNets of the literature on pruning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from suptickets_ray.training.models.convolutions import image_shape, initialize_convolutions
from suptickets_ray.training.models.mlp import mlp

_SMALLEST = 16
"""Minimum height and width (pixels), which two 5x5 convolutions and two poolings reduce to one pixel."""


def lenet_300_100(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """LeNet-300-100: two hidden layers without BatchNorm, 266,610 parameters on 28x28.

    Logits are (batch, num_classes). ReLU replaces the sigmoids of 1998.

    Args:
        sample_shape: Shape of one input; it is flattened.
        num_classes: Number of classes.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, section III; the count is
    that of Han et al., 1506.02626, table 1.
    """
    return mlp(sample_shape, num_classes, widths=(300, 100), batchnorm=False)


def lenet5(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """LeNet-5 as in Caffe: convolutions of 20 and 50 channels, 500 hidden units, 431,080 parameters on 28x28.

    This is the LeNet-5 of the literature on pruning, wider than that of 1998. Logits are (batch, num_classes); ReLU
    follows the convolutions too.

    Args:
        sample_shape: Shape of one image, (channels, height, width), from 16x16.
        num_classes: Number of classes.

    Raises:
        ValueError: If the examples are not images, or too small.

    Source: Han et al., 1506.02626, section 4.1 and table 1.
    """
    num_channels, height, width = image_shape(sample_shape, _SMALLEST)

    def shrunk(size: int) -> int:
        return ((size - 4) // 2 - 4) // 2

    num_features = 50 * shrunk(height) * shrunk(width)
    parts = {
        "features": nn.Sequential(
            *(nn.Conv2d(num_channels, 20, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(20, 50, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        ),
        "flatten": nn.Flatten(),
        "hidden": nn.Sequential(nn.Linear(num_features, 500), nn.ReLU(inplace=True)),
        "classifier": nn.Linear(500, num_classes),
    }
    return initialize_convolutions(nn.Sequential(OrderedDict(parts)))
