"""Random crops and flips, and scaling, of whole batches of images with torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from suptickets_ray.lookup import choose

PADDING_MODES = {"zero": "black pixels", "reflect": "the image mirrored at its border"}


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images. Source: He et al., 1512.03385, section 4.2 (padding 4, crop 32, flip)."""

    crop_padding: int = 0
    """Pixels added on every side before a random crop back to the image's size."""
    crop_padding_mode: str = "zero"
    flip: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range, because values of a data set are checked nowhere else."""
        if type(self.crop_padding) is not int or self.crop_padding < 0:
            raise ValueError(f"crop_padding must be a whole number of pixels, at least 0; got {self.crop_padding!r}.")
        choose(PADDING_MODES, self.crop_padding_mode, "crop_padding_mode")
        if type(self.flip) is not bool:
            raise ValueError(f"flip must be true or false; got {self.flip!r}.")

    @property
    def does_something(self) -> bool:
        """Whether any image is changed."""
        return self.crop_padding > 0 or self.flip

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Returns images (n, c, h, w) of the same type and device, each cropped and flipped independently.

        Args:
            images: Batch of images.
            generator: Source of the random crops and flips, on the CPU, so that they are equal on all devices.
        """
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, self.crop_padding_mode, generator)
        return random_flip(images, generator) if self.flip else images


def random_crop(images: Tensor, padding: int, mode: str, generator: Generator) -> Tensor:
    """Returns images (n, c, h, w), each cropped at random after padding by `padding` pixels on every side.

    One call gathers all n * c * h * w pixels, like torchvision's RandomCrop, but for a whole batch. `mode` is a key of
    PADDING_MODES.
    """
    num_images, _, height, width = images.shape
    padded = _padded(images, padding, mode)
    offsets = torch.randint(2 * padding + 1, (2, num_images), generator=generator)
    if images.device.type == "cpu" and images.dtype != torch.bfloat16:  # NumPy has no bfloat16
        # NumPy copies whole windows, several times faster than torch's indexing.
        views = np.lib.stride_tricks.sliding_window_view(padded.numpy(), (height, width), axis=(2, 3))
        tops, lefts = offsets
        return torch.from_numpy(views[np.arange(num_images), :, tops.numpy(), lefts.numpy()])
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (n, c, 2p + 1, 2p + 1, h, w)
    rows = torch.arange(num_images, device=images.device)
    tops, lefts = copied_ahead(offsets, images.device)
    return windows[rows, :, tops, lefts]


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Returns images (n, c, h, w), each mirrored left to right with probability 1/2."""
    num_images = len(images)
    flips = torch.rand(num_images, generator=generator).lt(0.5)
    # Both versions of all images, then one selection of whole images: faster than selecting single pixels.
    chosen = torch.arange(num_images).add(flips, alpha=num_images)
    return torch.cat([images, images.flip(3)]).index_select(0, copied_ahead(chosen, images.device))


def copied_ahead(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a CPU tensor on a device, copied from pinned memory, so that the host does not wait for a GPU."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=True)
    return tensor.pin_memory().to(device, non_blocking=True)


def _padded(images: Tensor, padding: int, mode: str) -> Tensor:
    """Returns images (n, c, h + 2p, w + 2p); written in slices, because torch's reflection does not support uint8."""
    num_images, num_channels, height, width = images.shape
    shape = (num_images, num_channels, height + 2 * padding, width + 2 * padding)
    rows, columns = slice(padding, padding + height), slice(padding, padding + width)
    padded = images.new_empty(shape) if mode == "reflect" else images.new_zeros(shape)
    padded[:, :, rows, columns] = images
    if mode == "reflect":
        for distance in range(1, padding + 1):  # column by column: a third faster than mirroring blocks
            padded[:, :, rows, padding - distance] = images[..., distance]
            padded[:, :, rows, padding + width - 1 + distance] = images[..., width - 1 - distance]
        for distance in range(1, padding + 1):
            padded[:, :, padding - distance] = padded[:, :, padding + distance]
            padded[:, :, padding + height - 1 + distance] = padded[:, :, padding + height - 1 - distance]
    return padded


class Scaling:
    """Converts stored inputs to network inputs: uint8 pixels in [0, 255] become (x / 255 - mean) / std."""

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        """Sets the statistics.

        Args:
            mean: Mean of each channel over the training set, pixels in [0, 1]; 0 when left out.
            std: Standard deviation of each channel; 1 when left out.

        Raises:
            ValueError: If their lengths differ, or a deviation is not above 0.
        """
        means, deviations = _numbers(mean, 0.0), _numbers(std, 1.0)
        if (
            len(means) != len(deviations)
            or not (deviations > 0).all()
            or not (means.abs() + deviations).isfinite().all()
        ):
            raise ValueError(f"mean and std must hold one number per channel, std above 0; got {mean} and {std}.")
        self._factor, self._offset = 1 / deviations, means / deviations
        self._constants: dict[tuple[torch.device, bool], tuple[Tensor, Tensor]] = {}
        self._is_identity = bool((means == 0).all() and (deviations == 1).all())

    def __call__(self, inputs: Tensor) -> Tensor:
        """Returns float32 inputs (n, c, ...); floating-point inputs are scaled by mean and std only.

        Integers other than uint8 are returned unchanged, because they are indices, e.g. of words.

        Raises:
            ValueError: If the inputs have another number of channels than mean and std.
        """
        if not inputs.is_floating_point() and inputs.dtype != torch.uint8:
            return inputs
        is_pixels = inputs.dtype == torch.uint8
        if not is_pixels and self._is_identity:
            return inputs.to(torch.float32)
        if len(self._factor) not in (1, *inputs.shape[1:2]):
            raise ValueError(
                f"mean and std must hold one number per channel; got {len(self._factor)} for inputs of shape "
                f"{tuple(inputs.shape[1:])}."
            )
        scaled = inputs.to(torch.float32, copy=True)
        shape = (-1, *(1,) * (inputs.ndim - 2))
        factor, offset = self._on(scaled.device, is_pixels)
        scaled.mul_(factor.view(shape))
        return scaled if self._is_identity else scaled.sub_(offset.view(shape))

    def _on(self, device: torch.device, is_pixels: bool) -> tuple[Tensor, Tensor]:
        """Returns factor and offset, float32 (c,), on a device; copied once, because a copy makes a GPU wait."""
        key = (device, is_pixels)
        if key not in self._constants:
            factor = self._factor / 255 if is_pixels else self._factor
            self._constants[key] = factor.float().to(device), self._offset.float().to(device)
        return self._constants[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_constants": {}}  # another process has other devices


def _numbers(given: Sequence[float] | None, default: float) -> Tensor:
    """Returns one number per channel, float64 (c,); a single number applies to all channels."""
    try:
        return torch.from_numpy(np.asarray(default if given is None else given).astype(np.float64).flatten())
    except (TypeError, ValueError) as error:
        raise ValueError(f"mean and std must hold one number per channel; got {given!r}.") from error
