"""Keeps a model and its optimizer sparse, and updates the topology on schedule."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module, Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from suptickets_ray.sparse import masks as mask_arithmetic
from suptickets_ray.sparse.ddp import ActiveGradientReduction, assert_equal_masks
from suptickets_ray.sparse.distributions import share_out
from suptickets_ray.sparse.initial_masks import NEED_GRADIENT, Start, initial_masks, uniform_counts
from suptickets_ray.sparse.layer_mask import LayerMask
from suptickets_ray.sparse.maskable import find_ddp, last_linear, maskable_parameters, output_dimensions, unwrap
from suptickets_ray.sparse.masked_step import MaskedStep
from suptickets_ray.sparse.plan import Plan
from suptickets_ray.sparse.topology import drop_and_grow, prune_layers, prune_to_count

_FORMAT_VERSION = 2
"""Format of `Sparsifier.state_dict`. In version 1 the highest bit of a packed mask came first."""


class Sparsifier:
    """Keeps a model sparse while any optimizer of torch trains it.

    In every `optimizer.step()` weights and optimizer state stay 0 off the masks. Call `step()` after it to run the
    method's topology updates. A step that a GradScaler skips does not count. Under DistributedDataParallel masks are
    equal on all ranks, given equal generators: gradients are averaged before any decision.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        method: str,
        *,
        density: float,
        total_steps: int,
        generator: Generator,
        masks: Mapping[str, Tensor] | None = None,
        keep_updating: bool = False,
        dense_layers: Sequence[str] = (),
        mask_embeddings: bool = False,
        **recipe: Any,
    ) -> None:
        """Attaches to the model and zeroes its weights off the initial masks.

        Args:
            model: The module, which torch.compile may wrap. A DistributedDataParallel wrapper is passed to
                `attach_ddp`.
            optimizer: Optimizer of the model's parameters.
            method: A name of `METHODS`.
            density: Target density in (0, 1], over the masked weights.
            total_steps: Optimizer steps of the sparse training phase; schedules end with it.
            generator: Source of the initial masks and of random growth, on the CPU; equal on all ranks.
            masks: Initial masks, instead of those of the recipe's distribution.
            keep_updating: Whether to drop and grow after `total_steps` too, with the schedule's final fraction.
            dense_layers: Layers to keep dense; see `maskable_parameters`.
            mask_embeddings: Whether embeddings are masked too.
            recipe: Settings of the method that override its defaults.

        Raises:
            ValueError: If a setting is unknown or out of range, a weight cannot be masked, the method would make no
                update, or the target density cannot be reached.
            RuntimeError: If the initial masks need a gradient and the parameters hold none.
        """
        self._plan = Plan(method, recipe, density=density, total_steps=total_steps, keep_updating=keep_updating)
        self.method, self.settings = self._plan.method, self._plan.settings
        if not self.method.sparse and (dense_layers or mask_embeddings):
            raise ValueError(f"dense_layers and mask_embeddings have no effect with method {method!r}. Leave them out.")
        self.generator = generator
        self.num_steps = 0
        self.num_updates = 0
        self.parameters: dict[str, Parameter] = maskable_parameters(
            model, dense_layers, mask_embeddings, check=self.method.sparse
        )
        """The masked weights by name, in the model's order."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [name for name, parameter in self.parameters.items() if id(parameter) not in held]
        if missing and self.method.sparse:
            raise ValueError(
                f"optimizer must hold every masked weight; {missing[0]!r} is not among its parameters. Add it, or keep "
                "it dense with dense_layers."
            )
        if not self.parameters and self.method.sparse:
            raise ValueError("model must have a weight of 2 or more dimensions to mask; this one has none.")
        self._owners = _owners(model, self.parameters)
        self._last_linear = last_linear(model, self.parameters)
        self._output_dimensions = output_dimensions(model, self.parameters)
        self._needs = self._plan.needs
        self._gradients: dict[str, Tensor] | None = None
        self._trained: set[str] = set()
        """Layers that had a gradient at the last step; the others keep their masks at an update."""
        self._momenta: dict[str, Tensor] = {}
        self._ddp: DistributedDataParallel | None = None
        self._compresses = False
        self._saw_diverged = False
        self._attached = True
        self._check_density()
        given = self._given(masks) if masks is not None else self._initial_masks()
        self._explored = {name: mask_arithmetic.pack(mask) for name, mask in given.items()}
        self._active_steps = dict.fromkeys(self.parameters, 0)
        self._dense_gradient_steps = dict.fromkeys(self.parameters, 0)
        self._masked_step = MaskedStep(optimizer, self.parameters, self._before_optimizer_step)
        self._masked_step.set_masks(given, exchanging=False)
        if (ddp := find_ddp(model)) is not None:
            self.attach_ddp(ddp)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sparsifier:
        """Returns a copy that is attached to the copies of model and optimizer.

        Copy all three at once, as in `model, optimizer, sparsifier = copy.deepcopy((model, optimizer, sparsifier))`.
        Separate copies would hold different weights.

        Raises:
            RuntimeError: If the model is trained by DistributedDataParallel, which cannot be copied.
        """
        if self._ddp is not None:
            raise RuntimeError(
                "Cannot copy a Sparsifier: DistributedDataParallel trains its model. Copy it before the model is "
                "wrapped, or save and load state_dict()."
            )
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo[id(self.generator)] = self.generator.clone_state()
        vars(copied).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises TypeError: a pickled optimizer loses its hooks, so the weights would not stay masked."""
        raise TypeError(
            "Cannot pickle a Sparsifier: a pickled optimizer loses its hooks. Save its state_dict(), and load it into "
            "a new one."
        )

    @property
    def masks(self) -> dict[str, Tensor]:
        """Copies of the bool masks, of the weights' shapes."""
        return {name: layer_mask.mask() for name, layer_mask in self._masked_step.layer_masks.items()}

    @property
    def counts(self) -> dict[str, int]:
        """The number of active weights of each layer."""
        return {name: layer_mask.count for name, layer_mask in self._masked_step.layer_masks.items()}

    @property
    def density(self) -> float:
        """The fraction of active weights among the masked layers' weights, in (0, 1]."""
        total = mask_arithmetic.num_positions(self.parameters)
        return sum(self.counts.values()) / total if total else 1.0

    @property
    def drop_fraction(self) -> float | None:
        """The fraction of a layer's connections that an update would exchange now; None if no update will come."""
        step = self.num_steps
        return self._plan.fraction_at(step) if self._plan.exchanges_after(step) else None

    @property
    def explored(self) -> dict[str, Tensor]:
        """Bool masks of the positions that have ever been active. Source: ITOP, 2102.02887, section 3."""
        return {
            name: mask_arithmetic.unpack(bits, self.parameters[name].shape) for name, bits in self._explored.items()
        }

    @property
    def layer_masks(self) -> dict[str, LayerMask]:
        """The masks in their stored form."""
        return self._masked_step.layer_masks

    @property
    def active_steps(self) -> dict[str, int]:
        """Sum over all steps so far of each layer's number of active weights, which determines its training cost."""
        return dict(self._active_steps)

    @property
    def dense_gradient_steps(self) -> dict[str, int]:
        """Sum over the steps so far that needed dense gradients of each layer's number of inactive weights."""
        return dict(self._dense_gradient_steps)

    @property
    def needs_dense_gradients(self) -> bool:
        """Whether the next step needs gradients off the masks: before an update by gradient; always for momentum."""
        return not self._attached or self._plan.needs_dense_gradients_at(self.num_steps + 1)

    def step(self) -> bool:
        """Counts one optimizer step and updates the topology when the method says so.

        Returns:
            Whether the topology was updated.

        Raises:
            RuntimeError: If no `optimizer.step()` came before, several came, or masks differ between ranks.
        """
        if not self._attached:
            return False
        self._masked_step.mask_foreign_writes()
        if self._masked_step.num_steps == self.num_steps:
            self._accept_skipped()
            self._gradients = None
            return False
        if self._masked_step.num_steps > self.num_steps + 1:
            raise RuntimeError(
                f"Cannot count {self._masked_step.num_steps - self.num_steps} optimizer steps at once: each may update "
                "the topology. Call step() after every optimizer.step()."
            )
        for name, (module, leaf) in self._owners.items():
            if module._parameters.get(leaf) is not self.parameters[name]:
                raise RuntimeError(
                    f"Cannot keep the model sparse: its tensor {name!r} was replaced, as by "
                    "load_state_dict(assign=True). Write into the tensors, or build a new optimizer and Sparsifier."
                )
        self.num_steps = self._masked_step.num_steps
        for name, layer_mask in self._masked_step.layer_masks.items():
            self._active_steps[name] += layer_mask.count
        due = self._plan.is_due(self.num_steps)
        if due:
            self._update()
            self.num_updates += 1
            if self._ddp is not None:
                assert_equal_masks(self.masks, self._ddp.process_group, f"after update {self.num_updates}")
        self._gradients = None
        return due

    def end_phase(self) -> None:
        """Ends the sparse training phase, also if a `GradScaler` skipped optimizer steps.

        Otherwise its last updates would happen in the next phase. Pruning that is still due happens now. If no step was
        skipped, nothing changes.
        """
        if self.num_steps >= self._plan.total_steps:
            return
        self.num_steps = self._masked_step.num_steps = self._plan.total_steps
        if self._plan.method.prunes:
            self._prune(self._plan.density)
        self._gradients = None

    def explore(self, fraction: float) -> None:
        """Exchanges a large fraction of all connections at once, with the method's criteria.

        Reads the dense gradients that the parameters hold; call it between `backward()` and `zero_grad()`.

        Args:
            fraction: Fraction of each layer's connections to exchange, in [0, 1].

        Raises:
            RuntimeError: If the criteria read gradients and the parameters hold none, or momenta before any step.
            ValueError: If the method has no criteria for exploration.

        Source: Sup-tickets, 2205.15322, section 3.2.
        """
        if not self.method.can_explore:
            raise ValueError("Cannot explore: the method keeps its masks. Choose one that drops and grows.")
        if "gradient" in self._needs and (self._compresses or self._masked_step.has_masked_gradients()):
            raise RuntimeError(
                "Cannot explore: the gradients are masked. Call explore() before mask_gradients(), and on a model "
                "without attach_ddp(), or with attach_ddp(compress=False)."
            )
        if "momentum" in self._needs and not self._momenta:
            raise RuntimeError("Cannot explore by momentum: there was no step yet. Train a step first.")
        self._gradients = self._dense_gradients() if "gradient" in self._needs else None
        if self._gradients is not None and not self._gradients:
            raise RuntimeError("Cannot explore: no masked weight has a gradient. Call backward() first.")
        self._trained = set(self.parameters if self._gradients is None else self._gradients)
        self._exchange(fraction)
        self._gradients = None
        if self._ddp is not None:
            assert_equal_masks(self.masks, self._ddp.process_group, "after exploring")

    def mask_gradients(self) -> None:
        """Zeroes the gradients off the masks, so that their norm is the sparse network's: call it before clipping.

        Dense gradients are kept if the next update needs them. Without clipping this call is not needed.
        """
        self._take_gradients()
        # Masking may hide the values for which a GradScaler skips the step.
        sums = [p.grad.sum().float() for p in self.parameters.values() if p.grad is not None]
        # One result for all layers: each transfer to the host makes a GPU wait.
        self._saw_diverged = bool(sums) and not bool(torch.stack([s.to(sums[0].device) for s in sums]).isfinite().all())
        self._masked_step.mask_gradients()

    def attach_ddp(self, model: DistributedDataParallel, *, compress: bool = True) -> None:
        """Registers the DistributedDataParallel wrapper that trains the model.

        From then on masks are compared over its ranks at every update. Between updates only the gradients of active
        weights are sent.

        Args:
            model: The wrapper of the model.
            compress: Whether to send active gradients only; False keeps the wrapper's communication, e.g. for a
                user-defined hook.

        Raises:
            RuntimeError: If the masks differ between ranks at this time.
        """
        assert_equal_masks(self.masks, model.process_group, "at the start")
        self._ddp = model
        self._compresses = compress and self.method.sparse
        if self._compresses:
            # DistributedDataParallel compares annotations, which are strings here; a lambda has none.
            reduction = ActiveGradientReduction(self, model.process_group)
            model.register_comm_hook(state=reduction, hook=lambda state, bucket: state.reduce(bucket))

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all future updates: masks as packed bits, counters, schedule, generator, history."""
        return {
            "format_version": _FORMAT_VERSION,
            "shapes": {name: list(parameter.shape) for name, parameter in self.parameters.items()},
            "masks": {name: mask_arithmetic.pack(mask) for name, mask in self.masks.items()},
            "explored": {name: bits.clone() for name, bits in self._explored.items()},
            "momenta": {name: momentum.clone() for name, momentum in self._momenta.items()},
            "num_steps": self.num_steps,
            "num_updates": self.num_updates,
            "active_steps": dict(self._active_steps),
            "dense_gradient_steps": dict(self._dense_gradient_steps),
            "generator": self.generator.get_state(),
            "schedule": self._plan.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state from `state_dict()`.

        Build model, optimizer and Sparsifier first, then load the state of all three, in any order. Building the
        Sparsifier zeroes weights off its initial masks.

        Raises:
            ValueError: If the state was taken from a model with other parameters, or under another method or schedule.
        """
        if (version := state.get("format_version")) != _FORMAT_VERSION:
            raise ValueError(f"the state must have format version {_FORMAT_VERSION}; got {version}. Train again.")
        shapes = {name: tuple(state["shapes"][name]) for name in state["masks"]}
        expected = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        if shapes != expected:
            differing = sorted(set(shapes.items()) ^ set(expected.items()))
            raise ValueError(f"the state must be of this model; these differ: {differing}.")
        own = self._plan.to_dict()
        if changed := sorted(key for key in {*own, *state["schedule"]} if own.get(key) != state["schedule"].get(key)):
            raise ValueError(
                f"the state must be of the same method and schedule; these differ: {', '.join(changed)}. "
                "Build the Sparsifier with the settings that the state was saved under."
            )
        self.num_steps = self._masked_step.num_steps = state["num_steps"]
        self.num_updates = state["num_updates"]
        self.generator.set_state(state["generator"].cpu())
        self._explored = {name: bits.cpu().clone() for name, bits in state["explored"].items()}
        self._active_steps = dict(state["active_steps"])
        self._dense_gradient_steps = dict(state["dense_gradient_steps"])
        self._momenta = {name: m.to(self.parameters[name].device).clone() for name, m in state["momenta"].items()}
        self._gradients = None
        loaded = {name: mask_arithmetic.unpack(bits, shapes[name]) for name, bits in state["masks"].items()}
        self._masked_step.set_masks(self._given(loaded), exchanging=False)

    def detach(self) -> None:
        """Stops masking and updating: the optimizer's hooks are removed."""
        self._attached = False
        self._masked_step.detach()

    def _check_density(self) -> None:
        density, size = self._plan.density, mask_arithmetic.num_positions(self.parameters)
        if mask_arithmetic.count_down(density, size) < len(self.parameters):
            raise ValueError(
                f"density must leave a connection for each of the {len(self.parameters)} layers of {size} weights; "
                f"got {density}. Choose a higher density."
            )
        if self.settings.get("prune_scope") == "layer":
            uniform_counts(self._sizes(), density, self._last_linear)

    def _given(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if set(masks) != set(self.parameters):
            raise ValueError(f"masks must be given for {', '.join(self.parameters)}; got {', '.join(masks) or 'none'}.")
        for name, parameter in self.parameters.items():
            if masks[name].shape != parameter.shape:
                raise ValueError(
                    f"the mask of {name!r} must have the shape {tuple(parameter.shape)}; got "
                    f"{tuple(masks[name].shape)}."
                )
        return {name: masks[name].to(parameter.device, torch.bool) for name, parameter in self.parameters.items()}

    def _initial_masks(self) -> dict[str, Tensor]:
        if self._plan.initial_density == 1 and "distribution" not in self.settings:
            return {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in self.parameters.items()}
        distribution = self.settings["distribution"]
        start = Start(
            self.parameters,
            self._plan.initial_density,
            self.generator,
            self._all_dense_gradients() if distribution in NEED_GRADIENT else None,
            self.settings.get("regrow_fraction", 0.0),
            self._last_linear,
            self._output_dimensions,
        )
        return self._given(initial_masks(distribution, start))

    def _sizes(self) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in self.parameters.items()}

    def _update(self) -> None:
        if self._plan.prunes_at(self.num_steps):
            self._prune(self._plan.density_at(self.num_steps))
        if self._plan.exchanges_at(self.num_steps):
            self._exchange(self._plan.fraction_at(self.num_steps))

    def _prune(self, density: float) -> None:
        """Prunes the layers that the last step trained; all layers if the untrained ones alone fill the density."""
        density = min(density, self.density)  # masks that were given may be sparser than the schedule
        counts, masks = self.counts, self.masks
        num_kept = mask_arithmetic.count_down(density, mask_arithmetic.num_positions(self.parameters))
        num_untrained = sum(count for name, count in counts.items() if name not in self._trained)
        num_kept -= num_untrained
        pruned = {name: self.parameters[name] for name in self.parameters if name in self._trained}
        if not pruned or num_kept < len(pruned):
            pruned, num_kept = self.parameters, num_kept + num_untrained
        own = {name: masks[name] for name in pruned}
        if self.settings["prune_scope"] == "global":
            masks |= prune_to_count(pruned, num_kept, own)
        else:
            uniform = uniform_counts(counts, density, self._last_linear, self._sizes())
            capacities = {name: counts[name] for name in pruned}
            shares, least = {name: uniform[name] for name in pruned}, dict.fromkeys(pruned, 1)
            masks |= prune_layers(pruned, share_out(shares, capacities, num_kept, least), own)
        self._masked_step.set_masks(masks, exchanging=True)

    def _exchange(self, fraction: float) -> None:
        """Exchanges connections in the layers that the last step trained; the others keep their masks."""
        settings, masks = self.settings, self.masks
        trained = {name: mask for name, mask in masks.items() if name in self._trained}
        if "momentum" in self._needs:
            trained = {name: mask for name, mask in trained.items() if name in self._momenta}
        if not trained:
            return
        masks |= drop_and_grow(
            self.parameters,
            trained,
            fraction,
            drop=settings["drop"],
            grow=settings["grow"],
            redistribution=settings["redistribution"],
            gradients=self._gradients,
            momenta=self._momenta or None,
            explored=self._explored_on_device() if "explored" in self._needs else None,
            generator=self.generator,
            gradient_weight=settings.get("drop_gradient_weight", 1.0),
            gradient_share=settings.get("grow_gradient_share", 0.5),
        )
        for name, mask in masks.items():
            self._explored[name] |= mask_arithmetic.pack(mask)
        self._masked_step.set_masks(masks, exchanging=True)

    def _explored_on_device(self) -> dict[str, Tensor]:
        return {name: mask.to(self.parameters[name].device) for name, mask in self.explored.items()}

    def _accept_skipped(self) -> None:
        """Accepts a missing optimizer step if a GradScaler skipped it for its gradients; else raises RuntimeError."""
        groups = self._masked_step.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        diverged, self._saw_diverged = self._saw_diverged, False
        if not diverged and all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise RuntimeError(
                "Cannot count a step: the Sparsifier's optimizer made none since the last call. Call optimizer.step() "
                "first, and zero_grad() after both."
            )

    def _dense_gradients(self) -> dict[str, Tensor]:
        """Returns the existing gradients: a frozen layer, or one that a step did not use, has none."""
        return {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}

    def _all_dense_gradients(self) -> dict[str, Tensor]:
        gradients = self._dense_gradients()
        if missing := [name for name in self.parameters if name not in gradients]:
            raise RuntimeError(
                f"every masked weight must have a gradient; {missing[0]!r} has none. Call backward() first."
            )
        return gradients

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Copies the dense gradients if the next update needs them, once per step."""
        if self._gradients is not None or not self.needs_dense_gradients:
            return
        # Copied: they are masked before they are read.
        self._gradients = {name: gradient.clone() for name, gradient in self._dense_gradients().items()}
        scale = getattr(self._masked_step.optimizer, "grad_scale", None)  # a fused optimizer unscales inside its step
        if scale is not None:
            for gradient in self._gradients.values():
                gradient.div_(scale)

    @torch.no_grad()
    def _before_optimizer_step(self) -> None:
        self._trained = {name for name, parameter in self.parameters.items() if parameter.grad is not None}
        dense = self.needs_dense_gradients
        self._take_gradients()
        if not dense:
            return
        assert self._gradients is not None
        for name in self._gradients:
            count = self._masked_step.layer_masks[name].count
            self._dense_gradient_steps[name] += self.parameters[name].numel() - count
        if "momentum" in self._needs:
            decay = self.settings["momentum_decay"]
            for name, gradient in self._gradients.items():
                # As torch's SGD: the first gradient unchanged, then a decaying sum.
                momentum = self._momenta.get(name)
                self._momenta[name] = gradient.clone() if momentum is None else momentum.mul_(decay).add_(gradient)
            if not self._plan.is_due(self.num_steps + 1):
                self._gradients = None


def _owners(model: Module, parameters: Mapping[str, Parameter]) -> dict[str, tuple[Module, str]]:
    """Returns the module of each parameter, and its name there."""
    plain = unwrap(model)
    return {name: (plain.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in parameters}
