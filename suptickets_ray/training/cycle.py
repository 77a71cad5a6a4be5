"""One cycle of cheap-ticket exploration: a pure function of a state, the recipe, the chain and the cycle."""

from __future__ import annotations

from collections.abc import Callable

from suptickets_ray.config import Config, TicketsConfig
from suptickets_ray.seeding import derive_seed
from suptickets_ray.tickets.schedule import triangular
from suptickets_ray.training.data import Splits
from suptickets_ray.training.loop import (
    Learner,
    compute_gradient,
    order_seed,
    seed_torch,
    steps_per_epoch,
    train_epoch,
)


def cycle_lr(section: TicketsConfig, epochs: float) -> float:
    """Returns the learning rate after `epochs` epochs of a cycle: a triangle, or the constant lr_low."""
    assert section.lr_high is not None  # resolved: equal to lr_low where the rate is not cyclic
    return triangular(epochs / section.cycle_epochs, section.lr_low, section.lr_high)


def run_cycle(
    learner: Learner,
    config: Config,
    splits: Splits,
    chain: int,
    cycle: int,
    after_epoch: Callable[[int, float], None] | None = None,
    on_update: Callable[[int], None] = lambda step: None,
    first_epoch: int = 0,
) -> None:
    """Explores the topology once, then trains with the triangular learning rate. The learner ends as the ticket.

    All randomness is derived from (seed, chain, cycle), so the result does not depend on the process or the time.

    Args:
        learner: Holds the final state of the previous cycle, or of pretraining.
        config: The recipe.
        splits: The data.
        chain: Chain, from 0.
        cycle: Cycle within the chain, from 0.
        after_epoch: Called with the epoch in the cycle and its mean loss.
        on_update: Called after every topology update, exploration included, with the number of steps taken in the
            cycle.
        first_epoch: Number of epochs of the cycle that the learner has already trained. It must hold the state after
            them; the remaining epochs are then bit-equal to those of an uninterrupted cycle.

    Source: Sup-tickets, 2205.15322, section 3.2 and algorithm 1.
    """
    seed, tickets = config.seed, config.tickets
    if not first_epoch:
        learner.sparsifier.generator.manual_seed(derive_seed(seed, "topology", chain, cycle))
    if tickets.explore and not first_epoch:
        assert tickets.exploration_fraction is not None
        seed_torch(seed, "explore", chain, cycle)
        with learner.sparsifier.dense_gradients():
            compute_gradient(learner.model, splits, config, derive_seed(seed, "batch", chain, cycle))
            learner.sparsifier.explore(tickets.exploration_fraction)
        learner.optimizer.zero_grad()
        on_update(0)
    epoch_steps = steps_per_epoch(config, splits)
    for epoch in range(first_epoch, tickets.cycle_epochs):
        seed_torch(seed, "cycle", chain, cycle, epoch)

        def rate(step: int, epoch: int = epoch) -> float:
            return cycle_lr(tickets, epoch + step / epoch_steps)

        def updated(step: int, epoch: int = epoch) -> None:
            on_update(epoch * epoch_steps + step)

        order = order_seed(seed, chain, cycle, epoch)
        loss = train_epoch(learner, learner.model, config, splits, order, rate, on_update=updated)
        if after_epoch is not None:
            after_epoch(epoch, loss)
