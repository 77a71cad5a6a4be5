"""Residual networks for small images: ResNet-18/34/50 with a 3x3 stem, and the 6n + 2 layers of ResNet-20/32/56."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from suptickets_ray.training.models.convolutions import (
    GlobalAverage,
    convolution,
    convolution_unit,
    image_shape,
    initialize_convolutions,
)


def cifar_resnet18(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem for small images: 11.2 M parameters, logits (batch, num_classes).

    One 3x3 convolution of stride 1 replaces the 7x7 convolution of stride 2 and the pooling, which would reduce 32x32
    to 8x8. In ResNet-50's bottlenecks the 3x3 convolution has the stride, as in torchvision, not the 1x1 convolution
    before it. The stages halve the image three times; any size works.

    Args:
        sample_shape: Shape of one image, (channels, height, width).
        num_classes: Number of classes.

    Raises:
        ValueError: If the examples are not images.

    Source: He et al., 1512.03385, table 1, with projections where the shape changes (option B).
    """
    return _resnet(sample_shape, num_classes, 64, (64, 128, 256, 512), (2, 2, 2, 2), _basic, _projection)


def cifar_resnet34(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """ResNet-34 with a 3x3 stem for small images: 21.3 M parameters; see `cifar_resnet18`.

    Source: He et al., 1512.03385, table 1.
    """
    return _resnet(sample_shape, num_classes, 64, (64, 128, 256, 512), (3, 4, 6, 3), _basic, _projection)


def cifar_resnet50(sample_shape: Sequence[int], num_classes: int) -> nn.Module:
    """ResNet-50 with a 3x3 stem for small images: 23.5 M parameters; see `cifar_resnet18`.

    Source: He et al., 1512.03385, table 1.
    """
    return _resnet(sample_shape, num_classes, 64, (256, 512, 1024, 2048), (3, 4, 6, 3), _bottleneck, _projection)


def resnet20(sample_shape: Sequence[int], num_classes: int, width: int = 16) -> nn.Module:
    """ResNet-20 for small images: 0.27 M parameters, logits (batch, num_classes).

    Where the shape changes, the shortcut takes every second pixel and adds channels of zeros (option A), as in the
    paper on CIFAR. Only this gives ResNet-56 its published 0.85 M parameters (0.86 M with projections).

    Args:
        sample_shape: Shape of one image, (channels, height, width); any size works.
        num_classes: Number of classes.
        width: Channels of the first stage; the next two have twice and four times as many.

    Raises:
        ValueError: If the examples are not images, or width is below 1.

    Source: He et al., 1512.03385, section 4.2.
    """
    return _thin_resnet(sample_shape, num_classes, 20, width)


def resnet32(sample_shape: Sequence[int], num_classes: int, width: int = 16) -> nn.Module:
    """ResNet-32 for small images: 0.46 M parameters; see `resnet20`.

    Source: He et al., 1512.03385, section 4.2.
    """
    return _thin_resnet(sample_shape, num_classes, 32, width)


def resnet56(sample_shape: Sequence[int], num_classes: int, width: int = 16) -> nn.Module:
    """ResNet-56 for small images: 0.85 M parameters; see `resnet20`.

    Source: He et al., 1512.03385, section 4.2.
    """
    return _thin_resnet(sample_shape, num_classes, 56, width)


def residual_stages(
    num_inputs: int,
    stage_channels: Sequence[int],
    num_blocks: Sequence[int],
    block: Callable[[int, int, int], nn.Module],
) -> nn.Sequential:
    """Returns stages of residual blocks; the first block of each but the first stage halves the image.

    Args:
        num_inputs: Input channels of the first block.
        stage_channels: Output channels of each stage.
        num_blocks: Number of blocks of each stage.
        block: Builds a block from input channels, output channels and stride.
    """
    stages: list[nn.Module] = []
    for num_outputs, count in zip(stage_channels, num_blocks, strict=True):
        stride = 2 if stages else 1
        blocks = [block(num_inputs, num_outputs, stride)]
        blocks += [block(num_outputs, num_outputs, 1) for _ in range(count - 1)]
        stages.append(nn.Sequential(*blocks))
        num_inputs = num_outputs
    return nn.Sequential(*stages)


def _resnet(
    sample_shape: Sequence[int],
    num_classes: int,
    stem_channels: int,
    stage_channels: Sequence[int],
    num_blocks: Sequence[int],
    branch: Callable[[int, int, int], nn.Module],
    shortcut: Callable[[int, int, int], nn.Module],
) -> nn.Module:
    num_channels, _, _ = image_shape(sample_shape)

    def block(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
        same = num_inputs == num_outputs and stride == 1
        return _Block(
            branch(num_inputs, num_outputs, stride),
            nn.Identity() if same else shortcut(num_inputs, num_outputs, stride),
        )

    parts = {
        "stem": nn.Sequential(*convolution_unit(num_channels, stem_channels)),
        "stages": residual_stages(stem_channels, stage_channels, num_blocks, block),
        "pool": GlobalAverage(),
        "classifier": nn.Linear(stage_channels[-1], num_classes),
    }
    return initialize_convolutions(nn.Sequential(OrderedDict(parts)))


def _thin_resnet(sample_shape: Sequence[int], num_classes: int, depth: int, width: int) -> nn.Module:
    if width < 1:
        raise ValueError(f"model.options.width must be at least 1; got {width}.")
    # One stem, one classifier, and three stages of blocks of two convolutions.
    blocks = (depth - 2) // 6
    return _resnet(
        sample_shape, num_classes, width, (width, 2 * width, 4 * width), (blocks,) * 3, _basic, _PaddedIdentity
    )


class _Block(nn.Module):
    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.branch(images) + self.shortcut(images))


def _basic(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        *convolution_unit(num_inputs, num_outputs, stride=stride),
        convolution(num_outputs, num_outputs),
        nn.BatchNorm2d(num_outputs),
    )


def _bottleneck(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
    narrow = num_outputs // 4
    return nn.Sequential(
        *convolution_unit(num_inputs, narrow, 1),
        *convolution_unit(narrow, narrow, stride=stride),
        convolution(narrow, num_outputs, 1),
        nn.BatchNorm2d(num_outputs),
    )


def _projection(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(convolution(num_inputs, num_outputs, 1, stride), nn.BatchNorm2d(num_outputs))


class _PaddedIdentity(nn.Module):
    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.num_zeros = num_outputs - num_inputs
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        # pad counts from the last dimension: width, height, channels, each before and after.
        return pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_zeros))
