"""Networks by name. A new model takes one function and one row; torchvision's models take none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.nn import Module

from suptickets_ray.config import ModelConfig
from suptickets_ray.lookup import choose_or_import, suggestion
from suptickets_ray.training.freezing import freeze
from suptickets_ray.training.models import huggingface, timm_models
from suptickets_ray.training.models.alexnet import cifar_alexnet
from suptickets_ray.training.models.lenet import lenet5, lenet_300_100
from suptickets_ray.training.models.mlp import cifar_mlp, mlp
from suptickets_ray.training.models.resnet import (
    cifar_resnet18,
    cifar_resnet34,
    cifar_resnet50,
    resnet20,
    resnet32,
    resnet56,
)
from suptickets_ray.training.models.torchvision_models import torchvision_builder, torchvision_names
from suptickets_ray.training.models.transformer import transformer
from suptickets_ray.training.models.vgg import cifar_vgg11, cifar_vgg13, cifar_vgg16, cifar_vgg19, vgg_like
from suptickets_ray.training.models.wide_resnet import wrn_16_8, wrn_16_10, wrn_22_2, wrn_28_10
from suptickets_ray.training.user_code import call_with

MODELS: dict[str, Callable[..., Module]] = {
    "mlp": mlp,
    "cifar_mlp": cifar_mlp,
    "transformer": transformer,
    "lenet_300_100": lenet_300_100,
    "lenet5": lenet5,
    "cifar_alexnet": cifar_alexnet,
    "cifar_vgg11": cifar_vgg11,
    "cifar_vgg13": cifar_vgg13,
    "cifar_vgg16": cifar_vgg16,
    "cifar_vgg19": cifar_vgg19,
    "vgg_like": vgg_like,
    "cifar_resnet18": cifar_resnet18,
    "cifar_resnet34": cifar_resnet34,
    "cifar_resnet50": cifar_resnet50,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "wrn_16_8": wrn_16_8,
    "wrn_16_10": wrn_16_10,
    "wrn_22_2": wrn_22_2,
    "wrn_28_10": wrn_28_10,
}
"""Models of this package. No name is one of torchvision's: resnet50 is torchvision's, and cifar_resnet50 is ours."""


def find_builder(name: str) -> Callable[..., Module]:
    """Returns the builder of a model by its name.

    It is a row of `MODELS`, a model of torchvision, "timm:NAME", "hf:FOLDER", or "package.module:function".

    Raises:
        ValueError: If the name is unknown; the error names the nearest model and all rows.
    """
    if name.startswith(timm_models.PREFIX):
        return timm_models.timm_builder(name.removeprefix(timm_models.PREFIX))
    if name.startswith(huggingface.PREFIX):
        return huggingface.huggingface_builder(name.removeprefix(huggingface.PREFIX))
    if name in MODELS or ":" in name:
        return choose_or_import(MODELS, name, "model")
    names = torchvision_names()
    if name in names:
        return torchvision_builder(name)
    raise ValueError(
        f"unknown model {name!r}{suggestion(name, [*MODELS, *names])} Known: {', '.join(MODELS)}, or any "
        "classification model of torchvision. timm:NAME and hf:FOLDER are those of timm and transformers. A "
        "user-defined one is named 'package.module:function'."
    )


def build_model(config: ModelConfig, sample_shape: Any, num_classes: int) -> Module:
    """Returns a new network with logits (batch, num_classes) and initial weights. The layers of `freeze` are frozen.

    Args:
        config: Name and options of the network.
        sample_shape: Shape of one input, e.g. (1, 8, 8); a tuple or dict of shapes if there are several.
        num_classes: Number of classes, or of outputs.

    Raises:
        ValueError: If the model is unknown, does not take an option, does not fit the inputs, or is not a Module, or a
            pattern of `freeze` matches nothing.
    """
    builder = find_builder(config.name)
    shape = tuple(sample_shape) if isinstance(sample_shape, Sequence) else sample_shape
    offered = {"sample_shape": shape, "num_classes": num_classes, "num_outputs": num_classes}
    model = call_with(builder, "model.name", offered, config.options)
    if not isinstance(model, Module):
        raise ValueError(f"model.name must build a torch.nn.Module; {config.name!r} gave {type(model).__name__}.")
    freeze(model, config.freeze or ())
    return model
