"""Networks by name. A new model is one function and one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.nn import Module

from suptickets_ray.config import ModelConfig
from suptickets_ray.lookup import choose_or_import
from suptickets_ray.training.calls import call_with
from suptickets_ray.training.models.mlp import mlp

MODELS: dict[str, Callable[..., Module]] = {"mlp": mlp}


def build_model(config: ModelConfig, sample_shape: Sequence[int], num_classes: int) -> Module:
    """Returns a new network that gives logits (batch, num_classes).

    Args:
        config: Name and options of the network.
        sample_shape: Shape of one input, e.g. (1, 8, 8).
        num_classes: Number of classes.

    Raises:
        ValueError: If the model is unknown, does not take an option, or has nothing to make sparse.
    """
    builder = choose_or_import(MODELS, config.name, "model")
    offered = {"sample_shape": tuple(sample_shape), "num_classes": num_classes}
    model = call_with(builder, "model.name", offered, config.options)
    if not isinstance(model, Module):
        raise ValueError(f"model.name must build a torch.nn.Module; {config.name!r} gave {type(model).__name__}.")
    return model
