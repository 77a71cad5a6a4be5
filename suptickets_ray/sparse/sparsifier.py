"""The one effect of this layer: keeping a model and its optimizer sparse, and changing the topology on time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module
from torch.optim import Optimizer

from suptickets_ray.lookup import choose
from suptickets_ray.sparse import masks as mask_arithmetic
from suptickets_ray.sparse.distributions import layer_counts, random_masks
from suptickets_ray.sparse.methods import METHODS, method_settings
from suptickets_ray.sparse.schedules import cubic_density, drop_fraction
from suptickets_ray.sparse.topology import drop_and_grow, prune_to_density


def maskable_parameters(model: Module) -> dict[str, Tensor]:
    """Returns the parameters with 2 or more dimensions, (out, in) or (out, in, kh, kw), in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}


class Sparsifier:
    """Keeps a model sparse while any optimizer of torch trains it.

    Before every `optimizer.step()` the gradients are masked, so that weights and optimizer state stay 0 off the mask;
    call `step()` after it, and the method's topology updates happen on time. With several ranks, attach it to the
    inner module of DistributedDataParallel: by then the gradients are the dense ones, averaged over ranks, and equal
    generators make equal masks.
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
        **recipe: Any,
    ) -> None:
        """Attaches to the model and zeroes what its first masks leave out.

        Args:
            model: The plain module, not a wrapper.
            optimizer: Holds the model's parameters.
            method: A name of `METHODS`.
            density: Target density in (0, 1].
            total_steps: Optimizer steps of the sparse training phase; schedules end with it.
            generator: Source of the first masks and of random growth, on the CPU; equal on all ranks.
            masks: First masks, instead of drawing them.
            keep_updating: Drop and grow after `total_steps` too, with the fraction that the schedule ended at.
            recipe: Settings of the method that override its defaults.

        Raises:
            ValueError: If a setting is unknown or out of range, the method could not do a single update, or the target
                density cannot be reached.
        """
        if not 0 < density <= 1:
            raise ValueError(f"density must be in (0, 1]; got {density}.")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1; got {total_steps}.")
        self.method = choose(METHODS, method, "method")
        if not self.method.sparse and density != 1:
            raise ValueError(f"density must be 1 with method {method!r}; got {density}.")
        self.settings = method_settings(method, recipe)
        self.target_density = density
        self.total_steps = total_steps
        self.keep_updating = keep_updating
        self.generator = generator
        self.num_steps = 0
        self.num_updates = 0
        self._parameters = maskable_parameters(model)
        self._optimizer = optimizer
        self._gradients: dict[str, Tensor] = {}
        size = mask_arithmetic.num_positions(self._parameters)
        if mask_arithmetic.count_down(density, size) < len(self._parameters):
            raise ValueError(
                f"density must leave a connection for each of the {len(self._parameters)} layers of {size} weights; "
                f"got {density}. Choose a higher one."
            )
        if self.method.prunes:
            self._window = self._prune_window()
        if self.method.exchanges and not any(self._exchanges_at(step) for step in self._update_steps()):
            raise ValueError(
                f"update_interval_steps must leave room for an update in the {total_steps} steps of phase one; got "
                f"{self.settings['update_interval_steps']}. Choose a smaller one, or method 'static'."
            )
        given = masks if masks is not None else self._first_masks()
        if set(given) != set(self._parameters):
            raise ValueError(
                f"masks must be given for {', '.join(self._parameters)}; got {', '.join(given) or 'none'}."
            )
        self.masks = {
            name: given[name].to(parameter.device, torch.bool) for name, parameter in self._parameters.items()
        }
        self._apply(self.masks)
        self._hook = optimizer.register_step_pre_hook(self._before_optimizer_step)

    @property
    def density(self) -> float:
        """The share of active weights among the maskable ones, in (0, 1]."""
        return mask_arithmetic.density(self.masks)

    def step(self) -> bool:
        """Counts one optimizer step and updates the topology when the method says so.

        Returns:
            Whether the topology was updated.

        Raises:
            RuntimeError: If an update is due but no `optimizer.step()` with gradients came before.
        """
        due = self._is_due(self.num_steps + 1)
        if due and not self._gradients:
            raise RuntimeError("step() must follow optimizer.step(); none came since the last call. Call it first.")
        self.num_steps += 1
        if due:
            self._update()
            self.num_updates += 1
        self._gradients = {}
        return due

    def explore(self, fraction: float) -> None:
        """Exchanges a large share of all connections at once, with the method's own criteria.

        Reads the dense gradients that the parameters hold; call it between `backward()` and `zero_grad()`.

        Args:
            fraction: Share of each layer's connections to exchange, in [0, 1].

        Raises:
            RuntimeError: If the parameters hold no gradients.
            ValueError: If the method has no criteria to explore with.

        Source: Sup-tickets, 2205.15322, section 3.2.
        """
        if not self.method.can_explore:
            raise ValueError("explore() must have a method that drops and grows; this one keeps its masks.")
        self._gradients = self._dense_gradients()
        self._exchange(fraction)
        self._gradients = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns masks, counters and generator state: all that the next updates depend on, tensors and ints only."""
        return {
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "num_steps": self.num_steps,
            "num_updates": self.num_updates,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict()` returned.

        Raises:
            ValueError: If the state was taken from a model with other parameters.
        """
        shapes = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        expected = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        if shapes != expected:
            differing = sorted(set(shapes.items()) ^ set(expected.items()))
            raise ValueError(f"the state must be of this model; these differ: {differing}.")
        self.num_steps = state["num_steps"]
        self.num_updates = state["num_updates"]
        self.generator.set_state(state["generator"])
        self.masks = {name: state["masks"][name].to(mask.device) for name, mask in self.masks.items()}
        self._apply(self.masks)

    def detach(self) -> None:
        """Stops masking: the optimizer's hook is removed."""
        self._hook.remove()

    def _first_masks(self) -> dict[str, Tensor]:
        shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        if not self.method.sparse or self.method.starts_dense:
            return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        density = self.settings.get("initial_density", self.target_density)
        return random_masks(layer_counts(shapes, density, self.settings["distribution"]), shapes, self.generator)

    def _prune_window(self) -> tuple[int, int]:
        """First and last pruning update, as multiples of the interval; the last must come before the phase ends."""
        interval = self.settings["update_interval_steps"]
        first = mask_arithmetic.count_down(self.settings["prune_start_fraction"], self.total_steps) // interval
        last = mask_arithmetic.count_down(self.settings["prune_end_fraction"], self.total_steps) // interval
        if last <= first:
            raise ValueError(
                f"the prune window must hold at least one update; it ends at step {last * interval} with updates every "
                f"{interval} of {self.total_steps} steps, so the target density is never reached. Choose a smaller "
                "update_interval_steps, a longer window or more epochs."
            )
        initial = self.settings.get("initial_density", 1.0)
        if initial < self.target_density:
            raise ValueError(
                f"initial_density must be at least the target density {self.target_density}; got {initial}."
            )
        return first, last

    def _update_steps(self) -> range:
        interval = self.settings["update_interval_steps"]
        return range(interval, self.total_steps + 1, interval)

    def _is_due(self, step: int) -> bool:
        if not (self.method.exchanges or self.method.prunes) or step % self.settings["update_interval_steps"]:
            return False
        return self._exchanges_at(step) or self._prunes_at(step)

    def _exchanges_at(self, step: int) -> bool:
        if not self.method.exchanges:
            return False
        if step > self.total_steps:
            return self.keep_updating
        return step <= mask_arithmetic.count_down(self.settings["update_end_fraction"], self.total_steps)

    def _prunes_at(self, step: int) -> bool:
        return self.method.prunes and step // self.settings["update_interval_steps"] <= self._window[1]

    def _update(self) -> None:
        if self._prunes_at(self.num_steps):
            first, last = self._window
            update = self.num_steps // self.settings["update_interval_steps"]
            initial = self.settings.get("initial_density", 1.0)
            density = cubic_density(update, first, last, initial, self.target_density)
            self._apply(prune_to_density(self._parameters, density, masks=self.masks))
        if self._exchanges_at(self.num_steps):
            settings = self.settings
            schedule, initial = settings["drop_fraction_schedule"], settings["drop_fraction"]
            self._exchange(drop_fraction(schedule, self.num_steps, self.total_steps, initial))

    def _exchange(self, fraction: float) -> None:
        new_masks = drop_and_grow(
            self._parameters,
            self.masks,
            fraction,
            drop=self.settings["drop"],
            grow=self.settings["grow"],
            redistribution=self.settings["redistribution"],
            gradients=self._gradients,
            generator=self.generator,
        )
        self._apply(new_masks)

    @torch.no_grad()
    def _apply(self, new_masks: Mapping[str, Tensor]) -> None:
        """Makes the masks current; what was and stays active keeps weight and state, everything else becomes 0."""
        for name, parameter in self._parameters.items():
            gone = ~(self.masks[name] & new_masks[name])
            for tensor in self._masked_tensors(parameter):
                tensor.masked_fill_(gone, 0)
            self.masks[name] = new_masks[name]

    def _masked_tensors(self, parameter: Tensor) -> Iterator[Tensor]:
        """The weight and every optimizer state tensor of its shape."""
        yield parameter
        for state in self._optimizer.state.get(parameter, {}).values():
            if isinstance(state, Tensor) and state.shape == parameter.shape:
                yield state

    def _dense_gradients(self) -> dict[str, Tensor]:
        missing = [name for name, parameter in self._parameters.items() if parameter.grad is None]
        if missing:
            raise RuntimeError(
                f"every masked weight must have a gradient; {missing[0]!r} has none. Call backward() first."
            )
        return {name: parameter.grad.clone() for name, parameter in self._parameters.items()}  # type: ignore[union-attr]

    @torch.no_grad()
    def _before_optimizer_step(self, *_: object) -> None:
        """Masks the gradients; the dense ones are kept when the coming update needs them."""
        if self._is_due(self.num_steps + 1):
            self._gradients = self._dense_gradients()
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                # Filled, not multiplied: a diverged gradient is NaN, and NaN * 0 would revive a pruned weight.
                parameter.grad.masked_fill_(~self.masks[name], 0)
