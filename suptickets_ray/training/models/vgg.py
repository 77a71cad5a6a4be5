"""VGG networks for small images, with BatchNorm."""

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

_CHANNELS = (64, 128, 256, 512, 512)
_NUM_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage, by the paper's number of layers with weights, three of which are linear."""


def cifar_vgg11(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """VGG-11 with BatchNorm and one linear layer: 9.2 M parameters; see `cifar_vgg16`.

    Source: Simonyan and Zisserman, 1409.1556, table 1, A.
    """
    return _vgg(sample_shape, 11, OrderedDict(classifier=nn.Linear(_CHANNELS[-1], num_classes)))


def cifar_vgg13(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """VGG-13 with BatchNorm and one linear layer: 9.4 M parameters; see `cifar_vgg16`.

    Source: Simonyan and Zisserman, 1409.1556, table 1, B.
    """
    return _vgg(sample_shape, 13, OrderedDict(classifier=nn.Linear(_CHANNELS[-1], num_classes)))


def cifar_vgg16(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """VGG-16 with BatchNorm and one linear layer: 14.7 M parameters, logits (batch, num_classes).

    Each convolution is followed by BatchNorm. One linear layer on the mean over the image replaces the paper's three,
    as is usual on CIFAR. Pooling reduces 32x32 to 1x1, and rounds odd sizes up, so that images of any size work.

    Args:
        sample_shape: Shape of one image, (channels, height, width).
        num_classes: Number of classes.

    Raises:
        ValueError: If the examples are not images.

    Source: Simonyan and Zisserman, 1409.1556, table 1, D.
    """
    return _vgg(sample_shape, 16, OrderedDict(classifier=nn.Linear(_CHANNELS[-1], num_classes)))


def cifar_vgg19(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """VGG-19 with BatchNorm and one linear layer: 20.0 M parameters; see `cifar_vgg16`.

    Source: Simonyan and Zisserman, 1409.1556, table 1, E.
    """
    return _vgg(sample_shape, 19, OrderedDict(classifier=nn.Linear(_CHANNELS[-1], num_classes)))


def vgg_like(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """VGG-like: VGG-16 with BatchNorm, dropout and a hidden layer of 512: 15.0 M parameters.

    Dropout follows every convolution except the last of a stage, with rate 0.3 in the first stage and 0.4 in the
    others. It precedes both linear layers with rate 0.5. Logits are (batch, num_classes).

    Args:
        sample_shape: Shape of one image, (channels, height, width); any size works.
        num_classes: Number of classes.

    Raises:
        ValueError: If the examples are not images.

    Source: Zagoruyko, "92.45% on CIFAR-10 in Torch", torch.ch/blog/2015/07/30/cifar.html, without the biases before
    BatchNorm, which have no effect; the count is that of Lee et al., 1810.02340, table 2.
    """
    num_features = _CHANNELS[-1]
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        hidden=nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(num_features, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        ),
        classifier=nn.Linear(512, num_classes),
    )
    return _vgg(sample_shape, 16, parts, dropout_rates=(0.3, 0.4, 0.4, 0.4, 0.4))


def _vgg(
    sample_shape: Sequence[int],
    depth: int,
    head: OrderedDict[str, nn.Module],
    dropout_rates: Sequence[float] = (0, 0, 0, 0, 0),
) -> nn.Module:
    num_inputs, _, _ = image_shape(sample_shape)
    stages: list[nn.Module] = []
    for num_outputs, count, rate in zip(_CHANNELS, _NUM_CONVOLUTIONS[depth], dropout_rates, strict=True):
        layers = convolution_unit(num_inputs, num_outputs)
        for _ in range(count - 1):
            layers += [nn.Dropout(rate)] if rate else []
            layers += convolution_unit(num_outputs, num_outputs)
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2, ceil_mode=True)))
        num_inputs = num_outputs
    parts = OrderedDict(stages=nn.Sequential(*stages), pool=GlobalAverage(), **head)
    return initialize_convolutions(nn.Sequential(parts))
