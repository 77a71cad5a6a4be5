"""Parts that the convolutional networks share: convolutions, initial weights, pooling, and the check of the images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def convolution(num_inputs: int, num_outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Returns a convolution with weights (num_outputs, num_inputs, kernel, kernel) that keeps the size at stride 1.

    It has no bias, because the shift of a BatchNorm after it, or after the sum it is added to, makes one redundant.
    """
    return nn.Conv2d(num_inputs, num_outputs, kernel, stride, padding=kernel // 2, bias=False)


def convolution_unit(num_inputs: int, num_outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Returns a convolution, its BatchNorm and ReLU."""
    return [
        convolution(num_inputs, num_outputs, kernel, stride),
        nn.BatchNorm2d(num_outputs),
        nn.ReLU(inplace=True),
    ]


class GlobalAverage(nn.Module):
    """The mean of each channel over the image: (batch, channels, height, width) to (batch, channels).

    Unlike torch's adaptive pooling, its backward pass is deterministic on a GPU.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Returns the means, (batch, channels)."""
        return images.mean(dim=(2, 3))


def initialize_convolutions(model: nn.Module) -> nn.Module:
    """Redraws all weights of convolutions, from torch's global generator, and returns the model.

    They are normal with variance 2 / (kh * kw * out). BatchNorm keeps torch's weight 1 and bias 0, linear layers
    torch's uniform weights.

    Source: He et al., 1502.01852, section 2.2, the backward case.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def image_shape(sample_shape: Sequence[int], smallest: int = 1) -> tuple[int, int, int]:
    """Returns channels, height and width.

    Args:
        sample_shape: Shape of one input.
        smallest: Minimum height and width.

    Raises:
        ValueError: If the inputs are not images, or too small.
    """
    if len(sample_shape) != 3:
        raise ValueError(
            "the data of this model must be images (channels, height, width); "
            f"got examples of shape {tuple(sample_shape)}. Choose model.name=mlp."
        )
    channels, height, width = sample_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"the images of this model must be at least {smallest} x {smallest} pixels; got {height} x {width}. "
            "Choose mlp, lenet_300_100, resnet20 or another model for small images."
        )
    return channels, height, width
