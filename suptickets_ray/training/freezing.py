"""Parameters and buffers that are not trained, chosen by name patterns."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType

from torch.nn import Module

from suptickets_ray.lookup import suggestion
from suptickets_ray.sparse.maskable import is_part_of


def freeze(model: Module, patterns: Sequence[str]) -> None:
    """Freezes the parameters and modules that match a pattern, in place.

    Frozen parameters need no gradient. A frozen module stays in evaluation mode, so that its BatchNorm keeps its
    statistics, and its dropout is off. A module is frozen if it matches itself, or if all of its parameters do.

    Args:
        model: The network.
        patterns: Names of parameters or modules, which may contain wildcards, e.g. "layer1" or "blocks.*.attn".

    Raises:
        ValueError: If a pattern matches no parameter, or none is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(is_part_of(name, pattern) for name in names):
            known = sorted({*names, *(name for name, _ in model.named_modules())} - {""})
            raise ValueError(
                f"model.freeze must match parameters; {pattern!r} matches none{suggestion(pattern, known)} "
                "A name of a parameter or module, or a pattern like 'layer1.*'."
            )
    for name, parameter in model.named_parameters():
        if any(is_part_of(name, pattern) for pattern in patterns):
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"model.freeze must leave parameters to train; got {', '.join(patterns)}, which is all of them."
        )
    for name, module in model.named_modules():
        own = list(module.parameters())
        is_frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        if is_frozen or (name and any(is_part_of(name, pattern) for pattern in patterns)):
            module.eval()
            # A bound method, so that a deep copy of the module holds that of the copy.
            module.train = MethodType(_stay_in_evaluation, module)


def _stay_in_evaluation(module: Module, mode: bool = True) -> Module:
    """Replaces `Module.train` of a frozen module."""
    return module
