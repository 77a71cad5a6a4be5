"""When a method changes the topology, and by how much: decisions about steps, without tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suptickets_ray.lookup import choose
from suptickets_ray.sparse.initial_masks import STRUCTURED
from suptickets_ray.sparse.masks import count_down
from suptickets_ray.sparse.methods import METHODS, criteria_needs, method_settings
from suptickets_ray.sparse.schedules import cubic_density, drop_fraction


class Plan:
    """A method with its settings, over the steps of pretraining and after. Steps count from 1."""

    def __init__(
        self, method: str, recipe: Mapping[str, Any], *, density: float, total_steps: int, keep_updating: bool
    ) -> None:
        """Checks that the method can reach its density, and makes at least one update.

        Args:
            method: A name of `METHODS`.
            recipe: Settings of the method that override its defaults.
            density: Target density in (0, 1].
            total_steps: Optimizer steps of the sparse training phase; schedules end with it.
            keep_updating: Whether to drop and grow after `total_steps` too, with the schedule's final fraction.

        Raises:
            ValueError: If a setting is unknown, out of range or without effect, or the density is never reached.
        """
        if not 0 < density <= 1:
            raise ValueError(f"density must be in (0, 1]; got {density}.")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1; got {total_steps}.")
        self.name = method
        self.method = choose(METHODS, method, "method")
        if not self.method.sparse and density != 1:
            raise ValueError(f"density must be 1 with method {method!r}; got {density}.")
        self.settings = method_settings(method, recipe)
        self.needs = criteria_needs(self.settings)
        self.density, self.total_steps, self.keep_updating = density, total_steps, keep_updating
        self._interval: int = self.settings.get("update_interval_steps", 1)
        self._window_start = 0
        if self.method.prunes:
            self._window_start = count_down(self.settings["prune_start_fraction"], total_steps)
        self._first_pruning, self._last_pruning = self._prune_window() if self.method.prunes else (0, 0)
        if keep_updating and not self.method.exchanges:
            raise ValueError("keep_updating has no effect with a method that does not drop and grow. Leave it out.")
        steps = range(self._interval, total_steps + 1, self._interval)
        if self.method.exchanges and not any(self.exchanges_at(step) for step in steps):
            raise ValueError(
                f"update_interval_steps must leave room for an update in the {total_steps} steps of pretraining; "
                f"got {self._interval}. Choose a smaller interval, or method 'static'."
            )

    @property
    def initial_density(self) -> float:
        """The density of the initial masks, in (0, 1]."""
        if not self.method.sparse or self.method.starts_dense:
            return 1.0
        density: float = self.settings.get("initial_density", self.density)
        return density

    def is_due(self, step: int) -> bool:
        """Returns whether the topology changes after this step."""
        return self.exchanges_at(step) or self.prunes_at(step)

    def exchanges_at(self, step: int) -> bool:
        """Returns whether connections are dropped and grown after this step; a method that prunes waits for its window.

        Source: GraNet, 2106.10404, algorithm 1: an update prunes, then regenerates.
        """
        if not self.method.exchanges or step % self._interval:
            return False
        if step > self.total_steps:
            return self.keep_updating
        if step < self._window_start:
            return False
        return step <= count_down(self.settings["update_end_fraction"], self.total_steps)

    def exchanges_after(self, step: int) -> bool:
        """Returns whether connections will be dropped and grown after a later step."""
        earliest = max(step + 1, self._window_start)
        return self.exchanges_at(-(-earliest // self._interval) * self._interval)

    def prunes_at(self, step: int) -> bool:
        """Returns whether connections are pruned after this step."""
        if not self.method.prunes or step % self._interval or step < self._window_start:
            return False
        return step // self._interval <= self._last_pruning

    def needs_dense_gradients_at(self, step: int) -> bool:
        """Returns whether this step needs gradients off the masks: to exchange by gradient, or always for momentum."""
        return "momentum" in self.needs or ("gradient" in self.needs and self.exchanges_at(step))

    def density_at(self, step: int) -> float:
        """Returns the density that pruning has to reach after this step."""
        update = step // self._interval
        return cubic_density(update, self._first_pruning, self._last_pruning, self.initial_density, self.density)

    def fraction_at(self, step: int) -> float:
        """Returns the fraction of connections to exchange after this step."""
        settings = self.settings
        return drop_fraction(settings["drop_fraction_schedule"], step, self.total_steps, settings["drop_fraction"])

    def to_dict(self) -> dict[str, Any]:
        """Returns everything that the plan depends on, as plain values."""
        own = {"method": self.name, "density": self.density, "total_steps": self.total_steps}
        return {**own, "keep_updating": self.keep_updating, **self.settings}

    def _prune_window(self) -> tuple[int, int]:
        """Returns the first and the last pruning update, as multiples of the interval; the last is within the phase."""
        first = self._window_start // self._interval
        last = count_down(self.settings["prune_end_fraction"], self.total_steps) // self._interval
        if last <= first:
            raise ValueError(
                f"the prune window must hold at least one update; it ends at step {last * self._interval} with updates "
                f"every {self._interval} of {self.total_steps} steps, so the target density is never reached. Choose a "
                "smaller update_interval_steps, a longer window or more epochs."
            )
        if self.initial_density < self.density:
            raise ValueError(
                f"initial_density must be at least the target density {self.density}; got {self.initial_density}."
            )
        if self.settings.get("distribution") in STRUCTURED:
            raise ValueError(
                "distribution must not be structured with a method that prunes single weights later; got "
                f"{self.settings['distribution']!r}."
            )
        return first, last
