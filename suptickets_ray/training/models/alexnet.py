"""AlexNet for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from suptickets_ray.training.models.convolutions import (
    GlobalAverage,
    convolution_unit,
    image_shape,
    initialize_convolutions,
)
from suptickets_ray.training.models.mlp import hidden_layers


def cifar_alexnet(sample_shape: Sequence[int], num_classes: int, hidden_units: int = 1024) -> nn.Module:
    """AlexNet for small images: five convolutions and two hidden layers, 5.1 M parameters.

    Kernels and channels are those of AlexNet without its two groups. Each convolution halves the image, from 32x32 to
    1x1, instead of a stride of 4 and poolings. BatchNorm replaces local response normalization and dropout. Logits are
    (batch, num_classes).

    Args:
        sample_shape: Shape of one image, (channels, height, width); any size works.
        num_classes: Number of classes.
        hidden_units: Units of each hidden layer: 1024 gives the 5.1 M parameters of AlexNet-s, 2048 the 8.5 M of
            AlexNet-b.

    Raises:
        ValueError: If the examples are not images, or hidden_units is below 1.

    Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012, section 3.5; the
    strides and hidden layers are our reading of the counts in Lee et al., 1810.02340, table 2.
    """
    if hidden_units < 1:
        raise ValueError(f"model.options.hidden_units must be at least 1; got {hidden_units}.")
    num_channels, _, _ = image_shape(sample_shape)
    parts = {
        "features": nn.Sequential(
            *convolution_unit(num_channels, 96, 11, 2),
            *convolution_unit(96, 256, 5, 2),
            *convolution_unit(256, 384, 3, 2),
            *convolution_unit(384, 384, 3, 2),
            *convolution_unit(384, 256, 3, 2),
        ),
        "pool": GlobalAverage(),
        "hidden": nn.Sequential(*hidden_layers((256, hidden_units, hidden_units))),
        "classifier": nn.Linear(hidden_units, num_classes),
    }
    return initialize_convolutions(nn.Sequential(OrderedDict(parts)))
