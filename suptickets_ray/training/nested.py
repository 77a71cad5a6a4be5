"""Inputs and outputs of networks that are not one tensor: tuples or dicts of tensors, and objects with fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import Module

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""Inputs of a batch: a tensor (n, ...), a tuple of them (positional arguments), or a dict (keyword arguments)."""
_FIELDS = ("logits", "out", "prediction")
"""Names of the main output: Hugging Face's, torchvision's of segmentation, and others'."""


def apply(model: Module, inputs: Inputs) -> Any:
    """Returns a network's outputs: a tuple becomes positional arguments, and a dict keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def map_tensors(function: Callable[[Tensor], Any], inputs: Any) -> Any:
    """Returns the inputs with `function` applied to every tensor."""
    if isinstance(inputs, Mapping):
        return {key: function(tensor) for key, tensor in inputs.items()}
    return tuple(map(function, inputs)) if isinstance(inputs, (tuple, list)) else function(inputs)


def tensors_of(inputs: Any) -> list[Tensor]:
    """Returns all tensors of inputs."""
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]


def num_examples(inputs: Any) -> int:
    """Returns the number of examples of a batch."""
    return len(tensors_of(inputs)[0])


def split_parts(inputs: Inputs, parts: int) -> list[Inputs]:
    """Returns the examples in `parts` nearly equal parts, in order."""
    if isinstance(inputs, Tensor):
        return list(inputs.tensor_split(parts))
    if isinstance(inputs, dict):
        cut = {key: tensor.tensor_split(parts) for key, tensor in inputs.items()}
        return [{key: pieces[number] for key, pieces in cut.items()} for number in range(parts)]
    return list(zip(*(tensor.tensor_split(parts) for tensor in inputs), strict=True))


def shape_of(inputs: Any) -> Any:
    """Returns the shape of one input, without the batch: a tuple, or a tuple or dict of tuples."""
    return map_tensors(lambda tensor: tuple(tensor.shape[1:]), inputs)


def describe_shape(shape: Any) -> str:
    """Returns the result of `shape_of` as text, e.g. "3 x 32 x 32" or "ids: 64, mask: 64"."""
    if isinstance(shape, Mapping):
        return ", ".join(f"{key}: {describe_shape(value)}" for key, value in shape.items())
    if any(isinstance(size, tuple) for size in shape):
        return ", ".join(map(describe_shape, shape))
    return " x ".join(map(str, shape))


def logits_of(outputs: Any) -> Tensor:
    """Returns the main output of a network: the tensor itself, its field `logits` or `out`, or the first of a tuple.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in _FIELDS:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise ValueError(
        f"model.name must return a tensor of logits, or an object, dict or tuple with logits; got "
        f"{type(outputs).__name__}. Return one tensor, or set task.name to a task that reads these outputs."
    )
