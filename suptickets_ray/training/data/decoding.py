"""Decodes images to pixels of one size: random resized crop for training, resize and centre crop otherwise."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from suptickets_ray.seeding import derive_seed

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Allowed formats. Pillow reads more, but passes EPS, for example, to an interpreter."""
_MAX_PIXELS = 89_000_000
"""A file of a few kilobytes can declare enough pixels to exhaust memory. Pillow only warns above this number."""
_SCALE, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # as torchvision


@dataclass(frozen=True)
class Decoder:
    """Decodes images to square ones. Source: Szegedy et al., 1409.4842, section 6."""

    image_size: int
    """Height and width of the result."""
    resize_size: int
    """Length of the shorter side before the centre crop; not used for a random crop."""

    def __post_init__(self) -> None:
        """Raises ValueError on a size out of range."""
        for name, least in (("image_size", 1), ("resize_size", self.image_size)):
            if type(size := getattr(self, name)) is not int or size < least:
                raise ValueError(f"data.options.{name} must be a whole number, at least {least}; got {size!r}.")

    def __call__(self, content: bytes, name: str, seed: int | None) -> Tensor:
        """Returns uint8 pixels (3, image_size, image_size).

        Args:
            content: The image file's bytes.
            name: Name of the image, for errors.
            seed: Seed of the random crop; None for the centre crop.

        Raises:
            ValueError: If the content is not a readable image.
        """
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
                if opened.width * opened.height > _MAX_PIXELS:
                    raise ValueError(f"it has {opened.width} x {opened.height} pixels, more than {_MAX_PIXELS:,}")
                image = _to_rgb(opened)
        except UnidentifiedImageError as error:  # its text names an object in memory
            raise ValueError(
                f"{name} must be an image that can be read; it is damaged, or its format is unknown."
            ) from error
        except Exception as error:  # a damaged file may raise any type
            raise ValueError(f"{name} must be an image that can be read; it is damaged: {error}.") from error
        image = self._center(image) if seed is None else self._random(image, seed)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def _center(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        scale = self.resize_size / min(width, height)
        if scale != 1:
            # As torchvision: the longer side is rounded down to whole pixels.
            longer = int(self.resize_size * max(width, height) / min(width, height))
            shape = (self.resize_size, longer) if width <= height else (longer, self.resize_size)
            image = image.resize(shape, Image.Resampling.BILINEAR)
        width, height = image.size
        left, top = round((width - self.image_size) / 2), round((height - self.image_size) / 2)
        return image.crop((left, top, left + self.image_size, top + self.image_size))

    def _random(self, image: Image.Image, seed: int) -> Image.Image:
        left, top, width, height = random_box(*image.size, Generator().manual_seed(seed))
        cropped = image.crop((left, top, left + width, top + height))
        return cropped.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB as Pillow does, except for modes in which Pillow would lose values."""
    if image.mode.startswith("I;16"):  # 16-bit grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and the value of white is unknown; store it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns without this step
    return image.convert("RGB")


def make_decoder(image_size: int | None, resize_size: int | None, in_memory: bool | None) -> Decoder:
    """Returns the decoder of a recipe's sizes.

    `image_size` is 224 when left out. `resize_size` is 8/7 of `image_size` when left out, or equal to it for images
    held in memory, which are not cropped.

    Raises:
        ValueError: If a size is out of range.
    """
    size = 224 if image_size is None else image_size
    Decoder(size, size)  # checks the size before it is used
    default = size if in_memory else round(size * 8 / 7)
    return Decoder(size, default if resize_size is None else resize_size)


def random_box(width: int, height: int, generator: Generator) -> tuple[int, int, int, int]:
    """Returns left, top, width and height of a random crop: 8 to 100 % of the area, aspect ratio 3:4 to 4:3."""
    low, high = (math.log(bound) for bound in _RATIO)
    for _ in range(_TRIES):
        area, log_ratio, across, down = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        target = width * height * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * area)
        ratio = math.exp(low + (high - low) * log_ratio)
        box_width, box_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = int(across * (width - box_width + 1)), int(down * (height - box_height + 1))
            return left, top, box_width, box_height
    # The whole image, cropped to the nearest allowed ratio.
    ratio = width / height
    box_width = round(height * _RATIO[1]) if ratio > _RATIO[1] else width
    box_height = round(width / _RATIO[0]) if ratio < _RATIO[0] else height
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def crop_seed(seed: int | None, index: int) -> int | None:
    """Returns the seed of one image's crop, from the epoch's seed and the image's index, equal in all readers."""
    return None if seed is None else derive_seed(seed, "image", index)
