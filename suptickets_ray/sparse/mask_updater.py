"""Runs the updates of a method over the steps of a training, and holds the state that they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from suptickets_ray.sparse import mask_update
from suptickets_ray.sparse.active_compute import ActiveCompute
from suptickets_ray.sparse.gradient_record import GradientRecord
from suptickets_ray.sparse.mask_history import MaskHistory
from suptickets_ray.sparse.masked_step import MaskedStep
from suptickets_ray.sparse.masked_weights import MaskedWeights
from suptickets_ray.sparse.masks import pack, unpack
from suptickets_ray.sparse.plan import Plan

_FORMAT_VERSION = 2
"""Format of `MaskUpdater.state_dict`. In version 1 the highest bit of a packed mask came first."""


class MaskUpdater:
    """The masks of a network in training: what they are, and how they change."""

    def __init__(
        self,
        weights: MaskedWeights,
        optimizer: Optimizer,
        plan: Plan,
        generator: Generator,
        masks: Mapping[str, Tensor] | None,
        compute: ActiveCompute,
    ) -> None:
        """Attaches to the optimizer and zeroes the weights off the initial masks.

        Args:
            weights: The masked weights.
            optimizer: Holds them.
            plan: When the masks change.
            generator: Source of the initial masks and of random growth, on the CPU.
            masks: Initial masks, instead of those of the plan's distribution.
            compute: Which layers compute with their active weights alone.

        Raises:
            ValueError: If given masks do not fit, or the target density cannot be reached.
            RuntimeError: If the initial masks need a gradient and the parameters hold none.
        """
        self.weights, self.plan, self.generator = weights, plan, generator
        self.num_steps = 0
        self.num_updates = 0
        self.record = GradientRecord()
        first = weights.initial_masks(plan, generator) if masks is None else weights.given_masks(masks)
        self.history = MaskHistory(first)
        self.masked_step = MaskedStep(optimizer, weights.parameters, self._before_optimizer_step, compute.chooses)
        self.masked_step.set_masks(first, exchanging=False)
        self.collects_dense_gradients = False
        """Whether gradients off the masks are needed in any case."""
        self.compute = compute
        compute.attach(self.masked_step.layer_masks, self.reads_dense_gradients)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The masked weights by name."""
        return self.weights.parameters

    @property
    def masks(self) -> dict[str, Tensor]:
        """Copies of the bool masks, of the weights' shapes."""
        return {name: layer_mask.mask() for name, layer_mask in self.masked_step.layer_masks.items()}

    @property
    def needs_dense_gradients(self) -> bool:
        """Whether the next step needs gradients off the masks."""
        return self.plan.needs_dense_gradients_at(self.num_steps + 1)

    def reads_dense_gradients(self) -> bool:
        """Returns whether gradients off the masks are needed by the next step, or were asked for."""
        return self.needs_dense_gradients or self.collects_dense_gradients

    def count_step(self) -> bool:
        """Counts one optimizer step; returns whether the masks changed after it."""
        self.num_steps = self.masked_step.num_steps
        self.history.count_step(self.masked_step.layer_masks)
        due = self.plan.is_due(self.num_steps)
        if self.plan.prunes_at(self.num_steps):
            self.prune(self.plan.density_at(self.num_steps))
        if self.plan.exchanges_at(self.num_steps):
            self.exchange(self.plan.fraction_at(self.num_steps))
        self.num_updates += due
        self.record.clear()
        if self.compute.decide():
            self.masked_step.set_masks(self.masks, exchanging=False)
        return due

    def accept_skipped(self) -> None:
        """Ends a step that a GradScaler skipped; raises RuntimeError if there was no reason to skip it."""
        self.record.accept_skipped(self.masked_step.optimizer)
        self.record.clear()

    def end_phase(self) -> None:
        """Ends the sparse training phase before its last step; pruning that is still due happens now."""
        if self.num_steps >= self.plan.total_steps:
            return
        self.num_steps = self.masked_step.num_steps = self.plan.total_steps
        if self.plan.method.prunes:
            self.prune(self.plan.density)
        self.record.clear()

    def prune(self, density: float) -> None:
        """Prunes to a density in (0, 1], over all layers."""
        scope, last_linear = self.plan.settings["prune_scope"], self.weights.last_linear
        masks = mask_update.prune(
            self.parameters, self.masks, self.record.trained, density, scope=scope, last_linear=last_linear
        )
        self.masked_step.set_masks(masks, exchanging=True)

    def exchange(self, fraction: float) -> None:
        """Exchanges a fraction, in [0, 1], of the connections of each layer that the last step trained."""
        record, needs = self.record, self.plan.needs
        explored = None
        if "explored" in needs:
            masks = self.history.explored(self.parameters)
            explored = {name: mask.to(self.parameters[name].device) for name, mask in masks.items()}
        masks = mask_update.exchange(
            self.parameters,
            self.masks,
            record.trained & record.momenta.keys() if "momentum" in needs else record.trained,
            fraction,
            settings=self.plan.settings,
            gradients=record.gradients,
            momenta=record.momenta or None,
            explored=explored,
            generator=self.generator,
        )
        self.history.add_masks(masks)
        self.masked_step.set_masks(masks, exchanging=True)

    def explore(self, fraction: float, *, compressed: bool) -> None:
        """Exchanges a fraction, in [0, 1], of all connections outside of the schedule.

        Args:
            fraction: Fraction of each layer's connections.
            compressed: Whether only active gradients were exchanged between ranks.

        Raises:
            RuntimeError: If the criteria read gradients and the parameters hold none, or momenta before any step.
        """
        needs, record = self.plan.needs, self.record
        if "gradient" in needs and (compressed or self.masked_step.has_masked_gradients()):
            raise RuntimeError(
                "Cannot explore: the gradients are masked. Call explore() before mask_gradients(), and on a model "
                "without attach_ddp(), or with attach_ddp(compress=False)."
            )
        if "momentum" in needs and not record.momenta:
            raise RuntimeError("Cannot explore by momentum: there was no step yet. Train a step first.")
        is_scattered = self.compute.scatters and self.compute.is_used and not self.collects_dense_gradients
        if "gradient" in needs and (
            is_scattered or any(gradient.is_sparse for gradient in self.weights.gradients().values())
        ):
            raise RuntimeError(
                "Cannot explore: the gradients hold active weights alone. Compute them and explore within "
                "`with sparsifier.dense_gradients():`."
            )
        record.gradients = self.weights.gradients() if "gradient" in needs else None
        if record.gradients is not None and not record.gradients:
            raise RuntimeError("Cannot explore: no masked weight has a gradient. Call backward() first.")
        record.trained = set(self.parameters if record.gradients is None else record.gradients)
        self.exchange(fraction)
        record.clear()

    def mask_gradients(self, *, keep_dense: bool) -> None:
        """Zeroes the gradients off the masks; keeps a copy of the dense ones if the next update needs them."""
        gradients = self.weights.gradients()
        if keep_dense:
            self.record.copy(gradients, self.masked_step.optimizer)
        self.record.note_diverged(gradients.values())
        self.masked_step.mask_gradients()

    def _before_optimizer_step(self) -> None:
        gradients = self.weights.gradients()
        self.record.trained = set(gradients)
        if not self.needs_dense_gradients:
            return
        self.record.copy(gradients, self.masked_step.optimizer)
        assert self.record.gradients is not None
        self.history.count_dense_gradients(self.masked_step.layer_masks, self.record.gradients)
        if "momentum" in self.plan.needs:
            self.record.average(self.plan.settings["momentum_decay"])
            if not self.plan.is_due(self.num_steps + 1):
                self.record.clear()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all future updates: masks as packed bits, counters, schedule, generator, history."""
        return {
            "format_version": _FORMAT_VERSION,
            "shapes": {name: list(parameter.shape) for name, parameter in self.parameters.items()},
            "masks": {name: pack(mask) for name, mask in self.masks.items()},
            "momenta": {name: momentum.clone() for name, momentum in self.record.momenta.items()},
            "num_steps": self.num_steps,
            "num_updates": self.num_updates,
            **self.history.state_dict(),
            "generator": self.generator.get_state(),
            **({"density_limits": dict(self.compute.limits)} if self.compute.limits else {}),
            "schedule": self.plan.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state from `state_dict()`.

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
        own = self.plan.to_dict()
        if changed := sorted(key for key in {*own, *state["schedule"]} if own.get(key) != state["schedule"].get(key)):
            raise ValueError(
                f"the state must be of the same method and schedule; these differ: {', '.join(changed)}. "
                "Build the Sparsifier with the settings that the state was saved under."
            )
        self.num_steps = self.masked_step.num_steps = state["num_steps"]
        self.num_updates = state["num_updates"]
        self.generator.set_state(state["generator"].cpu())
        self.history.load_state_dict(state)
        self.record.load_momenta(state["momenta"], self.parameters)
        # Decided once: other machines continue with the same products.
        self.compute.limits.update(state.get("density_limits", {}))
        loaded = {name: unpack(bits, shapes[name]) for name, bits in state["masks"].items()}
        self.masked_step.set_masks(self.weights.given_masks(loaded), exchanging=False)
