"""One epoch of sparse training, on one process or one DDP rank."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.amp import GradScaler
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from suptickets_ray.config import Config, MethodConfig, TrainConfig
from suptickets_ray.seeding import derive_seed
from suptickets_ray.sparse import Sparsifier
from suptickets_ray.sparse.initial_masks import NEED_GRADIENT
from suptickets_ray.sparse.maskable import find_ddp, maskable_parameters
from suptickets_ray.sparse.methods import METHODS
from suptickets_ray.tickets.schedule import Budget, plan_budget
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import read_state, restore, write_state
from suptickets_ray.training.data import Splits
from suptickets_ray.training.initialization import KAIMING_MODES, initialize_kaiming, initialize_sparse
from suptickets_ray.training.models import build_model
from suptickets_ray.training.nested import Inputs, apply, split_parts
from suptickets_ray.training.optim import make_optimizer
from suptickets_ray.training.task import Task
from suptickets_ray.training.tasks import classification, make_task
from suptickets_ray.training.weights_file import load_weights

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def seed_torch(seed: int, purpose: str, *keys: int) -> None:
    """Seeds the global generators, which layers such as dropout and user-defined data sets draw from."""
    derived = derive_seed(seed, purpose, *keys)
    torch.manual_seed(derived)
    random.seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002 - a data set may use the global generator


def steps_per_epoch(config: Config, splits: Splits) -> int:
    """Returns the optimizer steps of an epoch. Only whole batches count; the examples left out differ by epoch."""
    whole = len(splits.train) // config.data.batch_size
    return min(whole, config.train.limit_batches or whole)


def budget_of(config: Config) -> Budget:
    """Returns how the recipe's epochs are divided between pretraining and the cycles."""
    return plan_budget(config.train.epochs, config.tickets.cycle_epochs, config.tickets.cycle_rate)


@dataclass
class Learner:
    """A network, its optimizer and its sparsifier: the state that a phase or a cycle starts from and ends in."""

    model: Module
    optimizer: Optimizer
    sparsifier: Sparsifier
    scaler: GradScaler
    """Scales losses in float16; does nothing otherwise."""
    task: Task = field(default_factory=classification)
    """What the network is trained for."""

    def to_bytes(self, **progress: int) -> bytes:
        """Returns the complete training state and `progress`, in a format that is safe to read."""
        return write_state(self.model, self.optimizer, self.sparsifier.state_dict(), progress, self.scaler.state_dict())

    def load_bytes(self, content: bytes) -> dict[str, int]:
        """Restores the state from `to_bytes` and returns its progress. Only tensors and numbers are unpickled.

        Raises:
            ValueError: If the content is damaged.
        """
        state = read_state(content, next(self.model.parameters()).device)
        restore(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        state["sparsifier"]["generator"] = state["sparsifier"]["generator"].cpu()
        self.sparsifier.load_state_dict(state["sparsifier"])
        self.scaler.load_state_dict(state["scaler"])
        return dict(state["progress"])

    def ticket(self, provenance: dict[str, Any]) -> Ticket:
        """Returns the current network as a ticket."""
        return Ticket(self.model.state_dict(), self.sparsifier.masks, provenance)


def build_learner(config: Config, splits: Splits, device: torch.device, *, restores: bool = False) -> Learner:
    """Returns the network of a recipe with initial weights and initial masks, all drawn from the run's seed.

    Args:
        config: The recipe.
        splits: Its data.
        device: Device of the training.
        restores: Whether a state is loaded next. Initial masks then need no gradient, because they are replaced.

    Raises:
        ValueError: If model, method and data do not fit together.
    """
    seed_torch(config.seed, "model")
    model = build_model(config.model, splits.sample_shape, splits.num_classes).to(device)
    if config.model.weights is not None and not restores:
        load_weights(model, config.model.weights, download=bool(config.data.download))
    if config.model.initialization in KAIMING_MODES and not restores:
        generator = Generator().manual_seed(derive_seed(config.seed, "weights"))
        initialize_kaiming(model, KAIMING_MODES[config.model.initialization], generator)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if not maskable_parameters(model, check=False):
        raise ValueError("model.name must build a network with a weight of 2 or more dimensions; this one has none.")
    optimizer = make_optimizer(model, config.train)
    masks = None
    if restores:
        maskable = masked_parameters(model, config.method)
        masks = {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in maskable.items()}
    elif config.method.distribution in NEED_GRADIENT:
        seed_torch(config.seed, "first masks")
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        compute_gradient(model, splits, config, derive_seed(config.seed, "first masks"))
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
        masks=masks,
        keep_updating=config.tickets.update_masks,
        **sparsifier_settings(config) | _dense_layers(model, config.method),
    )
    optimizer.zero_grad()
    if config.model.initialization == "sparse_fan_in" and not restores:
        initialize_sparse(sparsifier, Generator().manual_seed(derive_seed(config.seed, "weights")))
    scaler = GradScaler(device.type, enabled=config.train.precision == "float16")
    if config.train.compile:
        model.compile()  # in place: names are kept, and DDP wraps one whole graph
    return Learner(model, optimizer, sparsifier, scaler, make_task(config))


def compute_gradient(model: Module, splits: Splits, config: Config, seed: int) -> None:
    """Computes the dense gradient of one training batch, drawn with `seed`, into the parameters' `grad`."""
    device = next(model.parameters()).device
    inputs, labels = next(iter(splits.train.epoch(seed, [config.data.batch_size], device)))
    inputs, task = _in_memory_format(inputs, config.train), make_task(config)
    model.train()
    model.zero_grad()
    # Parts as small as a rank's in training, so that they fit into GPU memory.
    ranks = config.cluster.max_workers if config.cluster.gpus_per_worker else 1
    parts = min(config.train.accumulation_steps * ranks, len(labels) // 2 or 1)
    for some_inputs, some_labels in zip(split_parts(inputs, parts), labels.tensor_split(parts), strict=True):
        # Always in float32: it is only one batch, and its smallest gradients are compared.
        loss = task.summed_loss(apply(model, some_inputs), some_labels) / len(some_labels)
        (loss * (len(some_labels) / len(labels))).backward()


def masked_parameters(model: Module, section: MethodConfig) -> dict[str, Parameter]:
    """Returns the parameters that a recipe's method masks, by name: neither dense layers nor frozen ones."""
    found = maskable_parameters(model, section.dense_layers or (), bool(section.mask_embeddings), check=False)
    is_sparse = METHODS[section.name].sparse
    return {name: parameter for name, parameter in found.items() if parameter.requires_grad or not is_sparse}


def _dense_layers(model: Module, section: MethodConfig) -> dict[str, list[str]]:
    """Returns the setting `dense_layers` with the frozen layers, if there are any."""
    found = maskable_parameters(model, section.dense_layers or (), bool(section.mask_embeddings), check=False)
    frozen = found.keys() - masked_parameters(model, section)
    return {"dense_layers": [*(section.dense_layers or ()), *sorted(frozen)]} if frozen else {}


def sparsifier_settings(config: Config) -> dict[str, Any]:
    """Returns the method's settings as the Sparsifier reads them: the prune window as fractions of pretraining."""
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


def train_epoch(
    learner: Learner,
    forward: Module,
    config: Config,
    splits: Splits,
    order_seed: int,
    rate_of_step: Callable[[int], float],
    *,
    rank: int = 0,
    world_size: int = 1,
    on_update: Callable[[int], None] = lambda step: None,
    on_diverged: Callable[[int], None] = lambda step: None,
) -> float:
    """Trains one epoch and returns the mean loss of this rank's examples.

    Args:
        learner: The learner to train.
        forward: The learner's model, or its DDP wrapper.
        config: The recipe. Its batch size is the total over all ranks; an incomplete last batch is not used.
        splits: Its data.
        order_seed: Seed of order and augmentation, equal on all ranks; see `order_seed`.
        rate_of_step: Returns the learning rate of a step of this epoch, counted from 0.
        rank: Rank of this process.
        world_size: Number of ranks.
        on_update: Called after every topology update with the number of steps taken in this epoch.
        on_diverged: Called at the end with the first step, from 1, whose loss was not finite, if any.
    """
    batch_size, device = config.data.batch_size, next(learner.model.parameters()).device
    sizes = [batch_size] * steps_per_epoch(config, splits)
    forward.train()
    # On the device: moving every step's loss to the host would make a GPU wait for it.
    total_loss, num_examples = torch.zeros((), dtype=torch.float64, device=device), 0
    first_bad = torch.zeros((), dtype=torch.int64, device=device)
    batches = splits.train.epoch(order_seed, sizes, device, rank=rank, world_size=world_size)
    for step, (inputs, labels) in enumerate(batches):
        for group in learner.optimizer.param_groups:
            group["lr"] = rate_of_step(step)
        learner.optimizer.zero_grad()
        # DDP averages over ranks, whose parts of a batch may differ by one: this makes it the batch's mean.
        loss = backward(learner, forward, config.train, inputs, labels, world_size / batch_size)
        total_loss += loss
        first_bad = torch.where((first_bad == 0) & ~loss.isfinite(), step + 1, first_bad)
        num_updates = learner.sparsifier.num_updates
        update(learner, config.train)
        if learner.sparsifier.num_updates > num_updates:
            on_update(step + 1)
        num_examples += len(labels)
    if bad_step := int(first_bad):
        on_diverged(bad_step)
    return float(total_loss / max(num_examples, 1))


def backward(
    learner: Learner, forward: Module, section: TrainConfig, inputs: Inputs, labels: Tensor, weight: float
) -> Tensor:
    """Adds the gradients of `weight` times the examples' summed loss, and returns the unweighted sum, on the device.

    The examples are cut into `accumulation_steps` parts. DDP ranks exchange gradients only after the last part.
    """
    device, inputs = labels.device, _in_memory_format(inputs, section)
    parts = min(section.accumulation_steps, len(labels))
    total = torch.zeros((), dtype=torch.float64, device=device)
    pairs = list(zip(split_parts(inputs, parts), labels.tensor_split(parts), strict=True))
    for number, (some_inputs, some_labels) in enumerate(pairs):
        ddp = find_ddp(forward) if number + 1 < parts else None  # compiled or not
        with ddp.no_sync() if ddp is not None else nullcontext():
            with autocast(section, device):
                loss = learner.task.summed_loss(apply(forward, some_inputs), some_labels)
            learner.scaler.scale(loss * weight).backward()
        total += loss.detach()
    return total


def _in_memory_format(inputs: Inputs, section: TrainConfig) -> Inputs:
    """Returns the inputs, images in the channels-last format if the recipe asks for it."""
    if section.channels_last and isinstance(inputs, Tensor) and inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def update(learner: Learner, section: TrainConfig) -> None:
    """Takes an optimizer step with the current gradients, and updates the topology when it is due."""
    if section.clip_norm is not None:
        learner.scaler.unscale_(learner.optimizer)
        learner.sparsifier.mask_gradients()  # the norm is that of the sparse network
        torch.nn.utils.clip_grad_norm_(learner.model.parameters(), section.clip_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.sparsifier.step()


def autocast(section: TrainConfig, device: torch.device) -> torch.autocast:
    """Returns the context of the forward pass, in lower precision if the recipe asks for it."""
    dtype = PRECISIONS[section.precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def order_seed(seed: int, *keys: int) -> int:
    """Returns the seed of an epoch's order, derived from the run's seed and the epoch's keys."""
    return derive_seed(seed, "order", *keys)
