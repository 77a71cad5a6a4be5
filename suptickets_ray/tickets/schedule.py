"""Time in cheap-ticket exploration: how many cycles fit, and the learning rate within one. No tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Budget:
    """How the epochs are divided between pretraining and cycles."""

    pretrain_epochs: int
    cycle_epochs: int
    cycles: int

    @property
    def cyclic_epochs(self) -> int:
        """Epochs of one chain of cycles."""
        return self.cycles * self.cycle_epochs


def plan_budget(epochs: int, cycle_epochs: int, cycle_rate: float) -> Budget:
    """Returns the number of cycles and the epochs that pretraining gets.

    The cycles share `epochs * cycle_rate`, in exact decimal arithmetic; pretraining gets the
    rest. 250 epochs, cycles of 8 and a rate of 0.1 give 226 + 24 and 3 cycles.

    Args:
        epochs: Epochs of the whole run.
        cycle_epochs: Epochs of one cycle.
        cycle_rate: Fraction of the epochs for the cycles, in (0, 1).

    Raises:
        ValueError: If no cycle fits, or none is left for pretraining.

    Source: Sup-tickets, 2205.15322, section 4.1.
    """
    if epochs < 1:
        raise ValueError(f"train.epochs must be at least 1; got {epochs}.")
    if cycle_epochs < 1:
        raise ValueError(f"tickets.cycle_epochs must be at least 1; got {cycle_epochs}.")
    if not 0 < cycle_rate < 1:
        raise ValueError(f"tickets.cycle_rate must be in (0, 1); got {cycle_rate}.")
    share = Fraction(str(cycle_rate)) * epochs
    cycles = int(share / cycle_epochs)
    if cycles == 0:
        raise ValueError(
            f"tickets.cycle_epochs must be at most train.epochs * tickets.cycle_rate = {float(share):g}, so that one "
            f"cycle fits; got {cycle_epochs}. Train longer, shorten the cycle or raise the rate."
        )
    pretrain_epochs = epochs - cycles * cycle_epochs
    if pretrain_epochs < 1:
        raise ValueError(
            f"tickets.cycle_rate must leave an epoch for pretraining; got {cycle_rate} of {epochs} epochs."
        )
    return Budget(pretrain_epochs, cycle_epochs, cycles)


def triangular(progress: float, low: float, high: float) -> float:
    """Returns the learning rate within a cycle: from `low` up to `high` at half of it, and back.

    Args:
        progress: Position in the cycle, in [0, 1).
        low: Rate at both ends, where the ticket is taken.
        high: Rate in the middle.

    Source: Sup-tickets, 2205.15322, section 3.2; Smith, 1506.01186. The public flags lr_1 and lr_2 are `low` and
    `high`; their help text says the reverse.
    """
    height = 2 * progress if progress <= 0.5 else 2 * (1 - progress)
    return low * (1 - height) + high * height


def canonical_order(chains: int, cycles: int) -> Iterator[tuple[int, int]]:
    """Yields (chain, cycle) in the order in which tickets are merged: cycle by cycle, inside a cycle by chain."""
    for cycle in range(cycles):
        for chain in range(chains):
            yield chain, cycle
