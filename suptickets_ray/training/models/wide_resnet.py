"""Wide residual networks for small images, with the activation before each convolution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from suptickets_ray.training.models.convolutions import (
    GlobalAverage,
    convolution,
    image_shape,
    initialize_convolutions,
)
from suptickets_ray.training.models.resnet import residual_stages


def wrn_28_10(sample_shape: Sequence[int], num_classes: int, dropout_rate: float = 0.0) -> nn.Module:
    """Wide ResNet of 28 layers, 10 times as wide: 36.5 M parameters, logits (batch, num_classes).

    Args:
        sample_shape: Shape of one image, (channels, height, width); any size works.
        num_classes: Number of classes.
        dropout_rate: Fraction of the activations between a block's two convolutions that dropout sets to zero; 0.3 in
            the paper's runs with dropout on CIFAR.

    Raises:
        ValueError: If the examples are not images, or dropout_rate is not in [0, 1).

    Source: Zagoruyko and Komodakis, 1605.07146, table 1 and sections 2 and 2.4.
    """
    return _wide_resnet(sample_shape, num_classes, 28, 10, dropout_rate)


def wrn_22_2(sample_shape: Sequence[int], num_classes: int, dropout_rate: float = 0.0) -> nn.Module:
    """Wide ResNet of 22 layers, twice as wide: 1.1 M parameters; see `wrn_28_10`.

    Source: Zagoruyko and Komodakis, 1605.07146, table 1.
    """
    return _wide_resnet(sample_shape, num_classes, 22, 2, dropout_rate)


def wrn_16_8(sample_shape: Sequence[int], num_classes: int, dropout_rate: float = 0.0) -> nn.Module:
    """Wide ResNet of 16 layers, 8 times as wide: 11.0 M parameters; see `wrn_28_10`.

    Source: Zagoruyko and Komodakis, 1605.07146, table 1.
    """
    return _wide_resnet(sample_shape, num_classes, 16, 8, dropout_rate)


def wrn_16_10(sample_shape: Sequence[int], num_classes: int, dropout_rate: float = 0.0) -> nn.Module:
    """Wide ResNet of 16 layers, 10 times as wide: 17.1 M parameters; see `wrn_28_10`.

    Source: Zagoruyko and Komodakis, 1605.07146, table 1.
    """
    return _wide_resnet(sample_shape, num_classes, 16, 10, dropout_rate)


def _wide_resnet(
    sample_shape: Sequence[int], num_classes: int, depth: int, widening: int, dropout_rate: float
) -> nn.Module:
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"model.options.dropout_rate must be in [0, 1); got {dropout_rate}.")
    num_channels, _, _ = image_shape(sample_shape)
    # The stem, a projection in each of three stages, and blocks of two convolutions.
    blocks = (depth - 4) // 6
    stage_channels = (16 * widening, 32 * widening, 64 * widening)

    def block(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
        return _WideBlock(num_inputs, num_outputs, stride, dropout_rate)

    parts = {
        "stem": convolution(num_channels, 16),
        "stages": residual_stages(16, stage_channels, (blocks,) * 3, block),
        "activation": _activation(stage_channels[-1]),
        "pool": GlobalAverage(),
        "classifier": nn.Linear(stage_channels[-1], num_classes),
    }
    return initialize_convolutions(nn.Sequential(OrderedDict(parts)))


class _WideBlock(nn.Module):
    def __init__(self, num_inputs: int, num_outputs: int, stride: int, dropout_rate: float) -> None:
        super().__init__()
        same = num_inputs == num_outputs and stride == 1
        self.activation = _activation(num_inputs)
        self.branch = nn.Sequential(
            convolution(num_inputs, num_outputs, stride=stride),
            _activation(num_outputs),
            nn.Dropout(dropout_rate) if dropout_rate else nn.Identity(),
            convolution(num_outputs, num_outputs),
        )
        self.projection = None if same else convolution(num_inputs, num_outputs, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        active = self.activation(images)
        shortcut = images if self.projection is None else self.projection(active)
        added: Tensor = self.branch(active) + shortcut
        return added


def _activation(num_channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(num_channels), nn.ReLU(inplace=True))
