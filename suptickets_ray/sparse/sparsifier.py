"""Keeps a model and its optimizer sparse, and updates the topology on schedule."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Generator, Tensor
from torch.nn import Module, Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from suptickets_ray.sparse.active_compute import ActiveCompute
from suptickets_ray.sparse.ddp import ActiveGradientReduction, assert_equal_masks
from suptickets_ray.sparse.layer_mask import LayerMask
from suptickets_ray.sparse.mask_updater import MaskUpdater
from suptickets_ray.sparse.maskable import find_ddp
from suptickets_ray.sparse.masked_weights import MaskedWeights
from suptickets_ray.sparse.masks import num_positions
from suptickets_ray.sparse.methods import Method
from suptickets_ray.sparse.plan import Plan


class Sparsifier:
    """Keeps a model sparse while any optimizer of torch trains it.

    In every `optimizer.step()` weights and optimizer state stay 0 off the masks. Call `step()` after it to run the
    method's topology updates. A step that a GradScaler skips does not count. Under DistributedDataParallel masks are
    equal on all ranks, given equal generators: gradients are averaged before any decision.

    With compute="sparse" the model keeps its modules, names, `state_dict()` and hooks, and its weights stay dense with
    zeros off the masks. Only `forward` is set on the modules that compute sparse; `detach()` removes it. Their weights'
    `grad` is then a sparse COO tensor of the active values, except in steps whose update reads all gradients.
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
        compute: str = "masked",
        **recipe: Any,
    ) -> None:
        """Attaches to the model and zeroes its weights off the initial masks.

        Args:
            model: The module, which torch.compile may wrap; pass DistributedDataParallel's wrapper to `attach_ddp`.
            optimizer: Optimizer of the model's parameters.
            method: A name of `METHODS`.
            density: Target density in (0, 1], over the masked weights.
            total_steps: Optimizer steps of the sparse training phase; schedules end with it.
            generator: Source of the initial masks and of random growth, on the CPU; equal on all ranks.
            masks: Initial masks, instead of those of the recipe's distribution.
            keep_updating: Whether to drop and grow after `total_steps` too, with the schedule's final fraction.
            dense_layers: Layers to keep dense; see `maskable_parameters`.
            mask_embeddings: Whether embeddings are masked too.
            compute: "masked": dense products with masked weights; "sparse": products of the active weights alone, in
                layers that can and are large and sparse enough; "auto": where they were measured to be faster.
            recipe: Settings of the method that override its defaults.

        Raises:
            ValueError: If a setting is unknown or out of range, a weight cannot be masked, the method would make no
                update, or the target density cannot be reached.
            RuntimeError: If the initial masks need a gradient and the parameters hold none.
        """
        plan = Plan(method, recipe, density=density, total_steps=total_steps, keep_updating=keep_updating)
        weights = MaskedWeights(model, optimizer, plan, dense_layers, mask_embeddings)
        computes = ActiveCompute(compute, model, weights.parameters, optimizer)
        self._updater = MaskUpdater(weights, optimizer, plan, generator, masks, computes)
        self._ddp: DistributedDataParallel | None = None
        self._compresses = False
        self._attached = True
        if (ddp := find_ddp(model)) is not None:
            self.attach_ddp(ddp)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sparsifier:
        """Returns a copy for the copies of model and optimizer; separate copies would hold different weights.

        Copy all three at once, as in `model, optimizer, sparsifier = copy.deepcopy((model, optimizer, sparsifier))`.

        Raises:
            RuntimeError: If the model is trained by DistributedDataParallel, which cannot be copied.
        """
        if self._ddp is not None:
            reason = "DistributedDataParallel trains its model"
            raise RuntimeError(f"Cannot copy a Sparsifier: {reason}. Copy it before, or save and load state_dict().")
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo[id(self.generator)] = self.generator.clone_state()
        vars(copied).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        copied._updater.compute.reattach()
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises TypeError, because the weights would not stay masked."""
        reason = "a pickled optimizer loses its hooks"
        raise TypeError(f"Cannot pickle a Sparsifier: {reason}. Save its state_dict(), and load it into a new one.")

    @property
    def method(self) -> Method:
        """The row of `METHODS`."""
        return self._updater.plan.method

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings, with its defaults filled in."""
        return self._updater.plan.settings

    @property
    def generator(self) -> Generator:
        """The source of random growth, on the CPU."""
        return self._updater.generator

    @property
    def num_steps(self) -> int:
        """The number of optimizer steps so far, without those that a GradScaler skipped."""
        return self._updater.num_steps

    @property
    def num_updates(self) -> int:
        """The number of topology updates so far, without explorations."""
        return self._updater.num_updates

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The masked weights by name, in the model's order."""
        return self._updater.parameters

    @property
    def masks(self) -> dict[str, Tensor]:
        """Copies of the bool masks, of the weights' shapes."""
        return self._updater.masks

    @property
    def counts(self) -> dict[str, int]:
        """The number of active weights of each layer."""
        return {name: layer_mask.count for name, layer_mask in self.layer_masks.items()}

    @property
    def density(self) -> float:
        """The fraction of active weights among the masked layers' weights, in (0, 1]."""
        total = num_positions(self.parameters)
        return sum(self.counts.values()) / total if total else 1.0

    @property
    def drop_fraction(self) -> float | None:
        """The fraction of a layer's connections that an update would exchange now; None if no update will come."""
        plan = self._updater.plan
        return plan.fraction_at(self.num_steps) if plan.exchanges_after(self.num_steps) else None

    @property
    def explored(self) -> dict[str, Tensor]:
        """Bool masks of the positions that have ever been active. Source: ITOP, 2102.02887, section 3."""
        return self._updater.history.explored(self.parameters)

    @property
    def layer_masks(self) -> dict[str, LayerMask]:
        """The masks in their stored form."""
        return self._updater.masked_step.layer_masks

    @property
    def active_steps(self) -> dict[str, int]:
        """Sum over all steps so far of each layer's number of active weights, which determines its training cost."""
        return dict(self._updater.history.active_steps)

    @property
    def dense_gradient_steps(self) -> dict[str, int]:
        """Sum over the steps so far that needed dense gradients of each layer's number of inactive weights."""
        return dict(self._updater.history.dense_gradient_steps)

    @property
    def needs_dense_gradients(self) -> bool:
        """Whether the next step needs gradients off the masks: before an update by gradient; always for momentum."""
        return not self._attached or self._updater.reads_dense_gradients()

    @property
    def computes_active(self) -> dict[str, str | None]:
        """Why each layer computes with a dense weight now; None if it computes with its active weights alone."""
        return self._updater.compute.reasons()

    @contextmanager
    def dense_gradients(self) -> Iterator[None]:
        """Returns a context in which `backward()` computes dense gradients in any case, for `explore()`."""
        self._updater.collects_dense_gradients = True
        try:
            yield
        finally:
            self._updater.collects_dense_gradients = False

    def step(self) -> bool:
        """Counts one optimizer step and updates the topology when the method says so.

        Returns:
            Whether the topology was updated.

        Raises:
            RuntimeError: If no `optimizer.step()` came before, several came, or masks differ between ranks.
        """
        if not self._attached:
            return False
        self._updater.masked_step.mask_foreign_writes()
        num_new = self._updater.masked_step.num_steps - self.num_steps
        if num_new == 0:
            self._updater.accept_skipped()
            return False
        if num_new > 1:
            remedy = "Call step() after every optimizer.step()."
            raise RuntimeError(
                f"Cannot count {num_new} optimizer steps at once: each may update the topology. {remedy}"
            )
        self._updater.weights.check_identity()
        if due := self._updater.count_step():
            self._assert_equal_masks(f"after update {self.num_updates}")
        return due

    def end_phase(self) -> None:
        """Ends the sparse training phase, also if a GradScaler skipped steps: pruning that is due happens now."""
        self._updater.end_phase()

    def explore(self, fraction: float) -> None:
        """Exchanges a large fraction of all connections at once, with the method's criteria.

        Reads the dense gradients that the parameters hold; call it between `backward()` and `zero_grad()`.

        Args:
            fraction: Fraction of each layer's connections to exchange, in [0, 1].

        Raises:
            RuntimeError: If the criteria read gradients and the parameters hold none, or momenta before any step.
            ValueError: If the method has no criteria.

        Source: Sup-tickets, 2205.15322, section 3.2.
        """
        if not self.method.can_explore:
            raise ValueError("Cannot explore: the method keeps its masks. Choose one that drops and grows.")
        self._updater.explore(fraction, compressed=self._compresses)
        self._assert_equal_masks("after exploring")

    def mask_gradients(self) -> None:
        """Zeroes the gradients off the masks, so that their norm is the sparse network's: call it before clipping.

        Dense gradients are kept if the next update needs them. Without clipping this call is not needed.
        """
        self._updater.mask_gradients(keep_dense=self.needs_dense_gradients)

    def attach_ddp(self, model: DistributedDataParallel, *, compress: bool = True) -> None:
        """Registers the DistributedDataParallel wrapper that trains the model.

        Masks are then compared over its ranks at every update; between them only active gradients are sent.

        Args:
            model: The wrapper of the model.
            compress: Whether to send active gradients only; False keeps the wrapper's communication, e.g. for a
                user-defined hook.

        Raises:
            RuntimeError: If the masks differ between ranks at this time.
        """
        self._ddp = model
        self._assert_equal_masks("at the start")
        self._updater.compute.scatters = True
        self._compresses = compress and self.method.sparse
        if self._compresses:
            # DistributedDataParallel compares annotations, which are strings here; a lambda has none.
            reduction = ActiveGradientReduction(self, model.process_group)
            model.register_comm_hook(state=reduction, hook=lambda state, bucket: state.reduce(bucket))

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all future updates: masks as packed bits, counters, schedule, generator, history."""
        return self._updater.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state from `state_dict()`.

        Build model, optimizer and Sparsifier first, then load the state of all three, in any order. Building the
        Sparsifier zeroes weights off its initial masks.

        Raises:
            ValueError: If the state was taken from a model with other parameters, or under another method or schedule.
        """
        self._updater.load_state_dict(state)

    def detach(self) -> None:
        """Stops masking and updating: all hooks are removed."""
        self._attached = False
        self._updater.masked_step.detach()
        self._updater.compute.detach()

    def _assert_equal_masks(self, when: str) -> None:
        if self._ddp is not None:
            assert_equal_masks(self.masks, self._ddp.process_group, when)
