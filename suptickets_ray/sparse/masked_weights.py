"""The weights of a model that are masked, with what their initial masks depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from suptickets_ray.sparse.initial_masks import NEED_GRADIENT, Start, initial_masks, uniform_counts
from suptickets_ray.sparse.maskable import last_linear, maskable_parameters, output_dimensions, unwrap
from suptickets_ray.sparse.masks import count_down, num_positions
from suptickets_ray.sparse.plan import Plan


class MaskedWeights:
    """The masked weights of a model by name, in the model's order."""

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        plan: Plan,
        dense_layers: Sequence[str],
        mask_embeddings: bool,
    ) -> None:
        """Finds the weights and checks that they can be masked.

        Args:
            model: The module; wrappers are removed.
            optimizer: Must hold every masked weight.
            plan: The method and its target density.
            dense_layers: Layers to keep dense; see `maskable_parameters`.
            mask_embeddings: Whether embeddings are masked too.

        Raises:
            ValueError: If a weight cannot be masked, there is none, or the density leaves a layer empty.
        """
        sparse = plan.method.sparse
        if not sparse and (dense_layers or mask_embeddings):
            raise ValueError(
                f"dense_layers and mask_embeddings have no effect with method {plan.name!r}. Leave them out."
            )
        self.parameters: dict[str, Parameter] = maskable_parameters(model, dense_layers, mask_embeddings, check=sparse)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [name for name, parameter in self.parameters.items() if id(parameter) not in held]
        if missing and sparse:
            raise ValueError(
                f"optimizer must hold every masked weight; {missing[0]!r} is not among its parameters. Add it, or keep "
                "it dense with dense_layers."
            )
        if not self.parameters and sparse:
            raise ValueError("model must have a weight of 2 or more dimensions to mask; this one has none.")
        self.owners = _owners(model, self.parameters)
        """The module of each parameter, and the parameter's name there."""
        self.last_linear = last_linear(model, self.parameters)
        self._output_dimensions = output_dimensions(model, self.parameters)
        self._check_density(plan)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights of each layer."""
        return {name: parameter.numel() for name, parameter in self.parameters.items()}

    def check_identity(self) -> None:
        """Raises RuntimeError if the model holds another tensor in the place of a masked weight."""
        for name, (module, leaf) in self.owners.items():
            if module._parameters.get(leaf) is not self.parameters[name]:
                raise RuntimeError(
                    f"Cannot keep the model sparse: its tensor {name!r} was replaced, as by "
                    "load_state_dict(assign=True). Write into the tensors, or build a new optimizer and Sparsifier."
                )

    def gradients(self) -> dict[str, Tensor]:
        """Returns the existing gradients: a frozen layer, or one that a step did not use, has none."""
        return {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}

    def given_masks(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns masks that a caller chose, as bool tensors on the weights' devices.

        Raises:
            ValueError: If names or shapes are not those of the weights.
        """
        if set(masks) != set(self.parameters):
            raise ValueError(f"masks must be given for {', '.join(self.parameters)}; got {', '.join(masks) or 'none'}.")
        for name, parameter in self.parameters.items():
            if masks[name].shape != parameter.shape:
                raise ValueError(
                    f"the mask of {name!r} must have the shape {tuple(parameter.shape)}; got "
                    f"{tuple(masks[name].shape)}."
                )
        return {name: masks[name].to(parameter.device, torch.bool) for name, parameter in self.parameters.items()}

    def initial_masks(self, plan: Plan, generator: Generator) -> dict[str, Tensor]:
        """Returns the initial masks of the plan's distribution.

        Raises:
            RuntimeError: If they need a gradient and a parameter holds none.
        """
        if plan.initial_density == 1 and "distribution" not in plan.settings:
            return {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in self.parameters.items()}
        distribution = plan.settings["distribution"]
        start = Start(
            self.parameters,
            plan.initial_density,
            generator,
            self._all_gradients() if distribution in NEED_GRADIENT else None,
            plan.settings.get("regrow_fraction", 0.0),
            self.last_linear,
            self._output_dimensions,
        )
        return self.given_masks(initial_masks(distribution, start))

    def _all_gradients(self) -> dict[str, Tensor]:
        gradients = self.gradients()
        if missing := [name for name in self.parameters if name not in gradients]:
            raise RuntimeError(
                f"every masked weight must have a gradient; {missing[0]!r} has none. Call backward() first."
            )
        return gradients

    def _check_density(self, plan: Plan) -> None:
        density, size = plan.density, num_positions(self.parameters)
        if count_down(density, size) < len(self.parameters):
            raise ValueError(
                f"density must leave a connection for each of the {len(self.parameters)} layers of {size} weights; "
                f"got {density}. Choose a higher density."
            )
        if plan.settings.get("prune_scope") == "layer":
            uniform_counts(self.sizes, density, self.last_linear)


def _owners(model: Module, parameters: Mapping[str, Parameter]) -> dict[str, tuple[Module, str]]:
    """Returns the module of each parameter, and its name there."""
    plain = unwrap(model)
    return {name: (plain.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in parameters}
