"""A whole recipe trained in this process, without Ray, for benchmarks that repeat it over seeds."""

from __future__ import annotations

import torch

from suptickets_ray import Ticket
from suptickets_ray.config import Config
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.tickets.schedule import canonical_order
from suptickets_ray.training.cycle import run_cycle
from suptickets_ray.training.data import Splits
from suptickets_ray.training.loop import budget_of, build_learner, order_seed, seed_torch, steps_per_epoch, train_epoch
from suptickets_ray.training.optim import pretrain_lr


def sup_ticket(config: Config, splits: Splits) -> Ticket:
    """Returns the sup-ticket of a recipe, trained in this process."""
    device, budget, epoch_steps = torch.device("cpu"), budget_of(config), steps_per_epoch(config, splits)
    learner = build_learner(config, splits, device)
    for epoch in range(budget.pretrain_epochs):
        seed_torch(config.seed, "pretrain", epoch)
        train_epoch(
            learner,
            learner.model,
            config,
            splits,
            order_seed(config.seed, epoch),
            lambda step, epoch=epoch: pretrain_lr(
                config.train, epoch * epoch_steps + step, epoch_steps, budget.pretrain_epochs
            ),
        )
    state, merger = learner.to_bytes(), Merger(config, splits, learner.ticket({}), device)
    states = dict.fromkeys(range(config.tickets.num_chains), state)
    for chain, cycle in canonical_order(config.tickets.num_chains, budget.cycles):
        learner.load_bytes(states[chain])
        run_cycle(learner, config, splits, chain, cycle)
        states[chain] = learner.to_bytes()
        merger.merge(learner.ticket({}), chain, cycle)
    return merger.superposed
