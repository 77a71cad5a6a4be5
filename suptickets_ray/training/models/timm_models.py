"""timm's networks for images by their names: model.name=timm:NAME. timm is an extra, imported only when it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.nn import Module

from suptickets_ray.lookup import suggestion
from suptickets_ray.training.models.convolutions import image_shape

PREFIX = "timm:"


def timm_builder(name: str) -> Callable[..., Module]:
    """Returns the function that builds timm's model of this name, with random weights.

    It takes sample_shape (channels, height, width), num_classes, and the options of timm's function, e.g. img_size for
    a vision transformer.

    Raises:
        ValueError: If timm is missing, or has no model of this name.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"model.name 'timm:{name}' must have the package timm; it is missing. Run: pip install "
            "'suptickets-ray[timm]'."
        ) from error
    if name not in (known := timm.list_models()):
        raise ValueError(f"unknown model of timm {name!r}{suggestion(name, known)}")

    def build(sample_shape: Sequence[int], num_classes: int, **options: Any) -> Module:
        for key in ("pretrained", "checkpoint_path"):
            if key in options:
                raise ValueError(f"model.options.{key} must not be set; got {options[key]}. Use model.weights.")
        channels = image_shape(sample_shape)[0]
        model: Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **options)
        return model

    return build
