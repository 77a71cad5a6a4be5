"""Torchvision's classification models by their names. Torchvision is imported only when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch.nn import Module

from suptickets_ray.training.models.convolutions import image_shape

_CHANNELS = 3
_WITH_AUXILIARY_LOGITS = ("googlenet", "inception_v3")
_WITHOUT_EFFECT = {
    "weights": "Tickets start from random weights.",
    "progress": "Nothing is downloaded.",
}


def torchvision_names() -> list[str]:
    """Returns the names of torchvision's models for image classification."""
    torchvision_models = _load()
    names: list[str] = torchvision_models.list_models(module=torchvision_models)
    return names


def torchvision_builder(name: str) -> Callable[..., Module]:
    """Returns the function that builds torchvision's model of this name, with random weights.

    It takes sample_shape (3, height, width), num_classes, and the options of torchvision's function. The model returns
    logits (batch, num_classes), in training too: auxiliary classifiers are left out. The function raises ValueError if
    the inputs are not images with 3 channels, or an option has no effect.
    """

    def build(sample_shape: Sequence[int], num_classes: int, **options: Any) -> Module:
        channels, height, width = image_shape(sample_shape)
        if channels != _CHANNELS:
            raise ValueError(
                f"the images of torchvision's {name} must have 3 channels; got {channels}. Choose a model of this "
                "package, such as cifar_resnet18."
            )
        for key, reason in _WITHOUT_EFFECT.items():
            if key in options:
                raise ValueError(f"model.options.{key} has no effect with torchvision's {name}. {reason} Leave it out.")
        if name in _WITH_AUXILIARY_LOGITS and options.get("aux_logits"):
            raise ValueError(
                f"model.options.aux_logits must be false; got {options['aux_logits']}. Training reads plain logits."
            )
        settings = _settings(name, height, width) | options
        model: Module = _load().get_model(name, weights=None, num_classes=num_classes, **settings)
        return model

    return build


def _settings(name: str, height: int, width: int) -> dict[str, Any]:
    """Returns the options with which a model returns plain logits, without warnings, for images of this size."""
    if name in _WITH_AUXILIARY_LOGITS:
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": height}
    if name == "maxvit_t":
        return {"input_size": (height, width)}
    return {}


def _load() -> ModuleType:
    """Imports torchvision's models; here and not at the top, because the first import takes seconds."""
    return importlib.import_module("torchvision.models")
