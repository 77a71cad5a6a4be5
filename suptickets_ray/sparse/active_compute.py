"""Decides which layers of a model compute with their active weights alone, and gives their modules such a forward pass.

The module keeps its class, parameters, names, `state_dict()` and hooks: only its attribute `forward` is set, on the
instance. The weight stays dense, with zeros off the mask, so that all other code reads and writes it as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from suptickets_ray.lookup import choose
from suptickets_ray.sparse.active_forward import FORWARDS, ActiveForward
from suptickets_ray.sparse.active_weights import ActiveWeights, GradientForm
from suptickets_ray.sparse.cost_model import LayerSize, density_limit
from suptickets_ray.sparse.csr_product import kernels_exist
from suptickets_ray.sparse.elementwise import ELEMENTWISE
from suptickets_ray.sparse.layer_mask import LayerMask
from suptickets_ray.sparse.maskable import unwrap

COMPUTE: dict[str, str] = {
    "auto": "for each layer whichever of the others is faster on this machine, from its second step on",
    "masked": "dense products with masked weights",
    "sparse": "products of the active weights alone, in layers that are large and sparse enough",
}
"""The values of `compute`."""

LEAST_WEIGHTS, MOST_DENSITY = 1 << 14, 0.2
"""Under "sparse", the size of the smallest layer and the highest density that compute with active weights alone."""


class ActiveCompute:
    """The layers of one model that compute with their active weights alone, as their masks are now."""

    def __init__(self, compute: str, model: Module, parameters: Mapping[str, Parameter], optimizer: Optimizer) -> None:
        """Finds the layers that can.

        Args:
            compute: A name of `COMPUTE`.
            model: The model, which wrappers may contain.
            parameters: The masked weights by name.
            optimizer: Holds them.

        Raises:
            ValueError: If no layer can compute with its active weights alone, but should.
        """
        choose(COMPUTE, compute, "compute")
        self._is_measured = compute == "auto"
        self._sizes_of_inputs: dict[str, LayerSize] = {}
        self.limits: dict[str, float] = {}
        """Under "auto", the highest density at which each layer computes with its active weights alone."""
        self._sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self._layer_masks: Mapping[str, LayerMask] = {}
        self._needs_dense: Callable[[], bool] = bool
        self.scatters = False
        """Whether gradients have to be strided tensors, as DistributedDataParallel needs them."""
        self._forwards: list[ActiveForward] = []
        self._layers: dict[str, tuple[Module, str]] = {}
        self.obstacles: dict[str, str] = dict.fromkeys(parameters, "compute is 'masked'")
        """Why a layer cannot compute with its active weights alone; layers that can are not listed."""
        if compute == "masked":
            return
        self._layers, self.obstacles = _find_layers(model, parameters, optimizer)
        if not self._layers and self._is_measured:
            reasons = "; ".join(sorted({*self.obstacles.values()})) or "it has no masked weight"
            warnings.warn(f"compute 'auto' masks dense weights in all layers of this model: {reasons}.", stacklevel=4)
        elif not self._layers:
            name, reason = next(iter(self.obstacles.items()), ("the model", "it has no masked weight"))
            raise ValueError(
                f"compute must be 'masked' for a model without a layer that can compute with its active weights alone; "
                f"got {compute!r}. {name!r} cannot: {reason}."
            )

    def attach(self, layer_masks: Mapping[str, LayerMask], needs_dense: Callable[[], bool]) -> None:
        """Sets the modules' forward passes.

        Args:
            layer_masks: The masks by name, always those of now.
            needs_dense: Returns whether gradients off the masks are needed now.
        """
        self._layer_masks, self._needs_dense = layer_masks, needs_dense
        by_module: dict[Module, dict[str, str]] = {}
        for name, (module, leaf) in self._layers.items():
            by_module.setdefault(module, {})[leaf] = name
        self._forwards = [ActiveForward(module, names, self) for module, names in by_module.items()]
        for forward in self._forwards:
            forward.module.__dict__["forward"] = forward

    def reattach(self) -> None:
        """Sets the forward passes of modules that were copied together with this object."""
        if self._forwards:
            self.attach(self._layer_masks, self._needs_dense)

    def detach(self) -> None:
        """Gives the modules their own forward passes back."""
        for forward in self._forwards:
            if forward.module.__dict__.get("forward") is forward:
                del forward.module.__dict__["forward"]
        self._forwards.clear()

    def chooses(self, name: str, count: int) -> bool:
        """Returns whether a layer with this number of active weights computes with them alone."""
        size = self._sizes[name]
        limit = self.limits.get(name, 0.0) if self._is_measured else MOST_DENSITY
        return name in self._layers and count <= limit * size

    def active_weights(self, name: str) -> ActiveWeights | None:
        """Returns a layer's active weights; None if it computes with dense ones."""
        return self._layer_masks[name].active

    @property
    def is_used(self) -> bool:
        """Whether any layer computes with its active weights alone now."""
        return any(mask.active is not None for mask in self._layer_masks.values())

    def reasons(self) -> dict[str, str | None]:
        """Returns why each layer computes with a dense weight now; None for those that do not."""
        reasons: dict[str, str | None] = {}
        for name, size in self._sizes.items():
            mask = self._layer_masks[name]
            chosen = f"it has {size} weights at density {mask.count / size:.3g}: dense products are faster"
            if self._is_measured and name not in self.limits:
                chosen = "it was not trained yet"
            reasons[name] = None if mask.active is not None else self.obstacles.get(name, chosen)
        return reasons

    def observe(self, name: str, inputs: Tensor, is_linear: bool) -> None:
        """Notes the size of a layer's inputs (n, in, positions) in training, until it is decided about."""
        if not self._is_measured or name in self.limits or not torch.is_grad_enabled():
            return
        module, leaf = self._layers[name]
        weight = module.get_parameter(leaf)
        num_positions = 0 if is_linear else inputs.shape[2]
        self._sizes_of_inputs[name] = LayerSize(
            len(weight), inputs.shape[1], len(inputs), num_positions, str(weight.dtype).removeprefix("torch.")
        )

    def decide(self) -> bool:
        """Decides about the layers that were observed since the last call; returns whether there were any."""
        sizes = {name: size for name, size in self._sizes_of_inputs.items() if name not in self.limits}
        self._sizes_of_inputs.clear()
        for name, size in sizes.items():
            self.limits[name] = density_limit(size)
        return bool(sizes)

    def gradient_form(self) -> GradientForm:
        """Returns the form that gradients of weights need now."""
        if self._needs_dense():
            return "dense"
        return "scattered" if self.scatters else "active"


def _find_layers(
    model: Module, parameters: Mapping[str, Parameter], optimizer: Optimizer
) -> tuple[dict[str, tuple[Module, str]], dict[str, str]]:
    """Returns the module and the name in it of each weight that can, and why each other one cannot."""
    layers: dict[str, tuple[Module, str]] = {}
    obstacles: dict[str, str] = {}
    is_compiled = unwrap(model) is not model and hasattr(model, "_orig_mod")
    holders = _holders(unwrap(model))
    for name, parameter in parameters.items():
        module, leaf = holders[id(parameter)]
        if type(optimizer) not in ELEMENTWISE:
            obstacles[name] = f"{type(optimizer).__name__} reads dense gradients"
        elif is_compiled or module._compiled_call_impl is not None:
            obstacles[name] = "torch.compile computes with dense weights"
        elif parameter.device.type != "cpu":
            obstacles[name] = f"torch has these kernels on the CPU only; it is on {parameter.device.type}"
        elif not kernels_exist(parameter.dtype):
            obstacles[name] = f"this build of torch has no such kernels for {parameter.dtype}"
        elif reason := _obstacle(module, leaf):
            obstacles[name] = reason
        elif parameter.numel() < LEAST_WEIGHTS:
            obstacles[name] = f"it has {parameter.numel()} weights, and dense products are faster below {LEAST_WEIGHTS}"
        else:
            layers[name] = module, leaf
    return layers, obstacles


def _holders(model: Module) -> dict[int, tuple[Module, str]]:
    """Returns the module that computes with each parameter, by identity, and the parameter's name there."""
    holders: dict[int, tuple[Module, str]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), (module, leaf))
    for module in model.modules():
        # It reads the weight of its output projection, and never calls it.
        if type(module) is nn.MultiheadAttention:
            holders[id(module.out_proj.weight)] = module, "out_proj.weight"
    return holders


def _obstacle(module: Module, leaf: str) -> str | None:
    """Returns why a module cannot compute with the active values of one of its weights alone; None if it can."""
    if type(module) not in FORWARDS:
        return f"there is no such forward pass for {type(module).__name__}"
    if "forward" in module.__dict__:
        return "its forward pass was replaced"
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if set(module.kernel_size) != {1} or module.groups != 1:
            return "only convolutions with one group and a kernel of size 1 can"
        if module.padding not in ("valid", "same") and any(module.padding):
            return "it pads its input"
    if isinstance(module, nn.MultiheadAttention):
        if leaf not in ("in_proj_weight", "out_proj.weight") or module.in_proj_weight is None:
            return "its projections have different sizes"
        if module.bias_k is not None or module.add_zero_attn:
            return "it adds keys and values of its own"
    return None
