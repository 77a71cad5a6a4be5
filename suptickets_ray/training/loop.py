"""One epoch of sparse training, on one process or one DDP rank."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from suptickets_ray.config import Config
from suptickets_ray.seeding import derive_seed
from suptickets_ray.sparse import Sparsifier
from suptickets_ray.sparse.first_masks import NEED_GRADIENT
from suptickets_ray.sparse.maskable import maskable_parameters
from suptickets_ray.tickets.cycles import Budget, plan_budget
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.splits import Examples
from suptickets_ray.training.models import build_model
from suptickets_ray.training.optimization import make_optimizer
from suptickets_ray.training.state import read_state, write_state

INITIALIZATIONS: dict[str, str] = {
    "default": "the weights that the model's builder drew",
    "sparse_fan_in": "normal with variance 1 / (3 * fan_in * layer density)",
}


def seed_torch(seed: int, purpose: str, *keys: int) -> None:
    """Seeds the global generators that layers such as dropout, and data sets of the user's own, draw from."""
    derived = derive_seed(seed, purpose, *keys)
    torch.manual_seed(derived)
    random.seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002 - it is the global one that a data set may use


def steps_per_epoch(config: Config, splits: Splits) -> int:
    """Returns the optimizer steps of an epoch: whole batches only; the rest differs every epoch."""
    return len(splits.train) // config.data.batch_size


def budget_of(config: Config) -> Budget:
    """Returns how the recipe's epochs are shared between the phases."""
    return plan_budget(config.train.epochs, config.tickets.cycle_epochs, config.tickets.cycle_rate)


@dataclass
class Learner:
    """A network, its optimizer and its sparsifier: the state that a phase or a cycle starts from and ends in."""

    model: Module
    optimizer: Optimizer
    sparsifier: Sparsifier

    def to_bytes(self, **progress: int) -> bytes:
        """Returns everything that further training depends on, and `progress`, readable without trusting it."""
        return write_state(self.model, self.optimizer, self.sparsifier.state_dict(), progress)

    def load_bytes(self, content: bytes) -> dict[str, int]:
        """Continues from what `to_bytes` gave, and returns its progress; only tensors and numbers are unpickled.

        Raises:
            ValueError: If the content is damaged.
        """
        state = read_state(content, next(self.model.parameters()).device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        state["sparsifier"]["generator"] = state["sparsifier"]["generator"].cpu()
        self.sparsifier.load_state_dict(state["sparsifier"])
        return dict(state["progress"])

    def ticket(self, provenance: dict[str, Any]) -> Ticket:
        """Returns the network as it stands."""
        return Ticket(self.model.state_dict(), self.sparsifier.masks, provenance)


def build_learner(config: Config, splits: Splits, device: torch.device) -> Learner:
    """Returns the network of a recipe with first weights and first masks, all drawn from the run's seed.

    Raises:
        ValueError: If model, method and data do not fit together.
    """
    seed_torch(config.seed, "model")
    model = build_model(config.model, splits.sample_shape, splits.num_classes).to(device)
    if not maskable_parameters(model, check=False):
        raise ValueError("model.name must build a network with a weight of 2 or more dimensions; this one has none.")
    optimizer = make_optimizer(model, config.train)
    if config.method.distribution in NEED_GRADIENT:
        seed_torch(config.seed, "first masks")
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        compute_gradient(model, splits, config.data.batch_size, derive_seed(config.seed, "first masks"))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    epoch_steps = steps_per_epoch(config, splits)
    sparsifier = Sparsifier(
        model,
        optimizer,
        config.method.name,
        density=config.method.density,
        total_steps=epoch_steps * budget_of(config).pretrain_epochs,
        generator=Generator().manual_seed(derive_seed(config.seed, "topology")),
        keep_updating=config.tickets.update_masks,
        **sparsifier_settings(config),
    )
    optimizer.zero_grad()
    if config.model.initialization == "sparse_fan_in":
        initialize_sparse(sparsifier, Generator().manual_seed(derive_seed(config.seed, "weights")))
    return Learner(model, optimizer, sparsifier)


def compute_gradient(model: Module, splits: Splits, batch_size: int, seed: int) -> None:
    """Leaves the dense gradient of one training batch, drawn by `seed`, in the model's parameters."""
    device = next(model.parameters()).device
    indices = torch.randperm(len(splits.train), generator=Generator().manual_seed(seed))[:batch_size]
    inputs, labels = (tensor.to(device) for tensor in splits.train.batch(indices))
    model.train()
    model.zero_grad()
    cross_entropy(model(inputs), labels).backward()


def sparsifier_settings(config: Config) -> dict[str, Any]:
    """Returns the method's settings as the Sparsifier reads them: the prune window as shares of phase one."""
    section = config.method
    settings = {
        key: value
        for key, value in vars(section).items()
        if value is not None and key not in ("name", "density", "prune_start_epoch", "prune_end_epoch")
    }
    if section.prune_end_epoch is not None and section.prune_start_epoch is not None:
        pretrain_epochs = budget_of(config).pretrain_epochs
        settings["prune_start_fraction"] = section.prune_start_epoch / pretrain_epochs
        settings["prune_end_fraction"] = section.prune_end_epoch / pretrain_epochs
    return settings


@torch.no_grad()
def initialize_sparse(sparsifier: Sparsifier, generator: Generator) -> None:
    """Redraws every masked weight from a normal of variance 1 / (3 * fan_in * density of its layer).

    The variance is that of torch's default for linear layers, over the connections that a unit really has.

    Source: Evci et al., 2010.03533, section 3.1 (there with variance 2 / fan_in).
    """
    masks = sparsifier.masks
    for name, parameter in sparsifier.parameters.items():
        mask = masks[name]
        fan_in = parameter[0].numel() * float(mask.sum()) / mask.numel()
        drawn = torch.randn(parameter.shape, generator=generator) / (3 * fan_in) ** 0.5
        parameter.copy_(drawn.to(parameter.device).masked_fill(~mask.to(parameter.device), 0))


def train_epoch(
    learner: Learner,
    forward: Module,
    examples: Examples,
    order: Tensor,
    batch_size: int,
    rate_of_step: Callable[[int], float],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> float:
    """Trains one epoch and returns the mean loss of this rank's examples.

    Args:
        learner: What is trained.
        forward: The learner's model, or its DDP wrapper.
        examples: Training examples.
        order: Permutation (n,) of their indices, equal on all ranks.
        batch_size: Examples of one step over all ranks; what is left over is not used in this epoch.
        rate_of_step: Learning rate of a step of this epoch, counted from 0.
        rank: This process among the ranks.
        world_size: Number of ranks.
    """
    device = next(learner.model.parameters()).device
    forward.train()
    # On the device: moving every step's loss to the host would make a GPU wait for it.
    total_loss, num_examples = torch.zeros((), dtype=torch.float64, device=device), 0
    for step in range(len(order) // batch_size):
        for group in learner.optimizer.param_groups:
            group["lr"] = rate_of_step(step)
        mine = order[step * batch_size : (step + 1) * batch_size][rank::world_size]
        inputs, labels = (tensor.to(device) for tensor in examples.batch(mine))
        loss = cross_entropy(forward(inputs), labels, reduction="sum")
        learner.optimizer.zero_grad()
        # DDP averages over ranks, whose shares of a batch may differ by one: this makes it the batch's mean.
        (loss * (world_size / batch_size)).backward()
        learner.optimizer.step()
        learner.sparsifier.step()
        total_loss += loss.detach()
        num_examples += len(mine)
    return float(total_loss / max(num_examples, 1))


def epoch_order(seed: int, size: int, *keys: int) -> Tensor:
    """Returns the order (size,) in which an epoch visits the examples, from the seed and the epoch's keys."""
    return torch.randperm(size, generator=Generator().manual_seed(derive_seed(seed, "order", *keys)))
