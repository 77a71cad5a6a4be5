"""Finds the parameters of any `nn.Module` that are masked; a weight that cannot be masked is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn import Module, Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from suptickets_ray.lookup import suggestion

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def _is_vector_or_position(name: str, parameter: Parameter) -> bool:
    leaf = name.rpartition(".")[2]
    if leaf.endswith("weight") or is_lazy(parameter):
        return False
    return sum(size > 1 for size in parameter.shape) <= 1 or "pos_embed" in leaf or "position" in leaf


def unwrap(model: Module) -> Module:
    """Returns the plain module inside torch.compile's and DistributedDataParallel's wrappers, in any order of them."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), Module):
            model = inner
        else:
            return model


def find_ddp(model: Module) -> DistributedDataParallel | None:
    """Returns the DistributedDataParallel among the wrappers of a model, also under torch.compile's."""
    while isinstance(inner := getattr(model, "_orig_mod", None), Module):
        model = inner
    return model if isinstance(model, DistributedDataParallel) else None


def maskable_parameters(
    model: Module, dense_layers: Sequence[str] = (), mask_embeddings: bool = False, *, check: bool = True
) -> dict[str, Parameter]:
    """Returns the masked parameters by name, in the model's order; a shared one appears once, under its first name.

    These are all parameters with 2 or more dimensions, e.g. (out, in) or (out, in, kh, kw), except those of
    normalization layers, of embeddings by default, and of dense layers. Bare parameters are excluded if they are
    effectively vectors, such as ConvNeXt's layer_scale (c, 1, 1) and ViT's class_token (1, 1, d), or positions, because
    pruning would remove nearly all of them.

    Args:
        model: Any module; wrappers of torch.compile and DistributedDataParallel are removed.
        dense_layers: Layers to keep dense: "first" or "last" for the first or last of these layers, a name of a module
            or parameter, which may contain wildcards ("blocks.*.attn"), or a type ("Conv2d").
        mask_embeddings: Whether embeddings are masked too.
        check: Whether a weight that cannot be masked is refused.

    Raises:
        ValueError: If an entry of `dense_layers` matches nothing, `mask_embeddings` has no effect, or a weight that
            would be masked is parametrized, lazy, frozen, sharded or has sparse gradients.
    """
    model = unwrap(model)
    owners = _owners(model)
    shared_with_embedding = {id(p) for _, m, p in owners if isinstance(m, _EMBEDDINGS)}
    normalizing = {id(p) for _, m, p in owners if isinstance(m, _NORMALIZATIONS)}
    if mask_embeddings and not shared_with_embedding:
        raise ValueError("mask_embeddings has no effect: the model has no embedding. Leave it out.")
    found: dict[str, Parameter] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in normalizing or (id(parameter) in shared_with_embedding and not mask_embeddings):
            continue
        if _is_vector_or_position(name, parameter):
            continue
        if is_lazy(parameter) or parameter.ndim >= 2:
            found[name] = parameter
    dense = _matches(model, found, dense_layers)
    masked = {name: parameter for name, parameter in found.items() if name not in dense}
    if found and not masked:
        raise ValueError(
            f"dense_layers must leave a layer to mask; got {', '.join(dense_layers)}, which is all of them."
        )
    for name, parameter in masked.items() if check else ():
        _check(name, parameter, owners)
    return masked


def last_linear(model: Module, parameters: dict[str, Parameter]) -> str | None:
    """Returns the name of the last masked weight that belongs to an `nn.Linear`; None if there is none."""
    linear = {id(p) for _, m, p in _owners(unwrap(model)) if isinstance(m, nn.Linear)}
    names = [name for name, parameter in parameters.items() if id(parameter) in linear]
    return names[-1] if names else None


def output_dimensions(model: Module, parameters: dict[str, Parameter]) -> dict[str, int]:
    """Returns the dimension of each weight that counts output channels: 1 for transposed convolutions, else 0."""
    transposed = {id(p) for _, m, p in _owners(unwrap(model)) if isinstance(m, nn.modules.conv._ConvTransposeNd)}
    return {name: int(id(parameter) in transposed) for name, parameter in parameters.items()}


def are_decayed(model: Module) -> dict[str, bool]:
    """Returns for every parameter whether weight decay usually applies to it: not to vectors, embeddings, positions."""
    embeddings = {id(p) for _, m, p in _owners(model) if isinstance(m, _EMBEDDINGS)}
    return {
        name: parameter.ndim >= 2 and id(parameter) not in embeddings and not _is_vector_or_position(name, parameter)
        for name, parameter in model.named_parameters()
    }


def _owners(model: Module) -> list[tuple[str, Module, Parameter]]:
    """Returns every module with each of its direct parameters; shared ones appear under all their names."""
    return [
        (f"{path}.{name}" if path else name, module, parameter)
        for path, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]


def _matches(model: Module, found: dict[str, Parameter], entries: Sequence[str]) -> set[str]:
    names, dense = list(found), set()
    types = {name: _type_names(model, parameter) for name, parameter in found.items()}
    for entry in entries:
        if entry in ("first", "last"):
            matching = names[:1] if entry == "first" else names[-1:]
        else:
            matching = [name for name in names if entry in types[name] or is_part_of(name, entry)]
        if not matching:
            known = {
                *names,
                *(name.rpartition(".")[0] for name in names),
                *(t for some in types.values() for t in some),
            }
            raise ValueError(
                f"dense_layers must name layers that would be masked; {entry!r} matches none"
                f"{suggestion(entry, sorted(known - {''}))} A name, a pattern like 'layer1.*', a type like 'Conv2d', "
                "'first' or 'last'."
            )
        dense.update(matching)
    return dense


def is_part_of(name: str, pattern: str) -> bool:
    """Returns whether a pattern such as "layer1.*" matches a parameter or module, or a module that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:depth]), pattern) for depth in range(1, len(parts) + 1))


def _type_names(model: Module, parameter: Parameter) -> set[str]:
    """Returns the types of the modules that hold the parameter, and their base types up to nn.Module."""
    return {
        base.__name__
        for _, module, own in _owners(model)
        if own is parameter
        for base in type(module).__mro__
        if issubclass(base, Module) and base is not Module
    }


def _check(name: str, parameter: Parameter, owners: list[tuple[str, Module, Parameter]]) -> None:
    remedy = f"or keep it dense with dense_layers=[{name!r}]"
    if is_lazy(parameter):
        raise ValueError(f"{name!r} must have a shape; it is lazy. Run one batch through the model first.")
    if not parameter.requires_grad:
        raise ValueError(f"{name!r} must be trained; it is frozen. Set requires_grad, {remedy}.")
    if type(parameter.data).__name__ == "DTensor":
        raise ValueError(f"{name!r} must be whole on each rank; it is sharded. Use DistributedDataParallel.")
    for _, module, own in owners:
        if own is not parameter:
            continue
        if isinstance(module, parametrize.ParametrizationList):
            kinds = ", ".join(type(step).__name__ for step in module)
            raise ValueError(
                f"{name!r} must be a plain weight; it is parametrized by {kinds}, which need not keep zeros. "
                f"Call torch.nn.utils.parametrize.remove_parametrizations, {remedy}."
            )
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _REWRITING_HOOKS)]
        if hooks:
            raise ValueError(
                f"{name!r} must be a plain weight; {type(hooks[0]).__name__} recomputes it in every forward pass. "
                f"Remove the hook, {remedy}."
            )
        if isinstance(module, _EMBEDDINGS) and module.sparse:
            raise ValueError(f"{name!r} must have dense gradients; its embedding has sparse=True. Use sparse=False.")


_REWRITING_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
