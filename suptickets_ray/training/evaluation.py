"""Scores of a network on a set of examples, and recalibration of its BatchNorm statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from suptickets_ray.config import Config, SuperpositionConfig
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.models import build_model
from suptickets_ray.training.nested import apply, logits_of
from suptickets_ray.training.task import Task
from suptickets_ray.training.tasks import classification, make_task

EVALUATION_BATCH_SIZE, _LARGEST_BATCH = 512, 10_000_000
"""Maximum examples of a batch, and maximum elements of its inputs in total: large images get smaller batches."""
_RECALIBRATION_EXAMPLES = 1024


def _batch_size(examples: Examples) -> int:
    return max(min(EVALUATION_BATCH_SIZE, _LARGEST_BATCH // examples.sample_size), 2)


@torch.no_grad()
def predict(model: Module, examples: Examples) -> Tensor:
    """Returns the logits (n, ...) of all examples on the CPU, float32; the model's mode does not change."""
    device = next(model.parameters()).device
    with _modes_restored(model):
        model.eval()
        batches = examples.batches(_batch_size(examples), device)
        return torch.cat([logits_of(apply(model, inputs)).float().cpu() for inputs, _ in batches])


@dataclass(frozen=True)
class Measured:
    """What a task measures of a network on a set of n examples."""

    values: dict[str, Tensor]
    """Values of the examples (n,) by metric, on the CPU; bool where they are right or wrong."""
    loss: float | None = None
    """Mean loss, if the values do not contain it; None if it is unknown."""
    predictions: Tensor | None = None
    """Predictions (n, ...), if they are kept."""

    @property
    def scores(self) -> dict[str, float]:
        """The mean of each metric, and the loss; NaN for an unknown loss."""
        means = {name: float(values.double().mean()) for name, values in self.values.items()}
        return means if "loss" in means else means | {"loss": math.nan if self.loss is None else self.loss}


@torch.no_grad()
def measure_network(
    model: Module, examples: Examples, task: Task | None = None, *, keep_predictions: bool = False
) -> Measured:
    """Measures a network on all examples, batch by batch. The model's mode does not change.

    Args:
        model: The network.
        examples: The examples.
        task: The task; classification by default.
        keep_predictions: Whether the result holds the predictions, which may need much memory.
    """
    task, device = task or classification(), next(model.parameters()).device
    values: dict[str, list[Tensor]] = {}
    predictions: list[Tensor] = []
    total = 0.0
    with _modes_restored(model):
        model.eval()
        for inputs, targets in examples.batches(_batch_size(examples), device):
            outputs = apply(model, inputs)
            predicted, expected = task.predict(outputs).cpu(), targets.cpu()
            measured = task.measure(predicted, expected)
            for name, each in measured.items():
                values.setdefault(name, []).append(each.detach().cpu())
            if "loss" not in measured:
                total += float(task.summed_loss(outputs, targets))
            if keep_predictions:
                predictions.append(predicted.float())
    return Measured(
        {name: torch.cat(some) for name, some in values.items()},
        None if "loss" in values else total / len(examples),
        torch.cat(predictions) if predictions else None,
    )


def measure_predictions(predictions: Tensor, targets: Tensor, task: Task) -> Measured:
    """Measures predictions (n, ...), such as the mean of several networks', against targets (n, ...)."""
    return Measured(dict(task.measure(predictions, targets)))


@contextmanager
def _modes_restored(model: Module) -> Iterator[None]:
    """Restores every module's mode on exit, because some modules may stay in evaluation mode in training."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(model: Module, examples: Examples, task: Task | None = None) -> dict[str, float]:
    """Returns the metrics of a task, and the loss, of a model on all examples. Classification by default."""
    return measure_network(model, examples, task).scores


def evaluate_ticket(config: Config, splits: Splits, ticket: Ticket, split: str = "test") -> dict[str, float]:
    """Returns metrics and loss of a ticket of the recipe's model on "train", "validation" or "test", on the CPU."""
    model = build_model(config.model, splits.sample_shape, splits.num_classes)
    restore(model, ticket.state_dict())
    return evaluate(model, getattr(splits, split), make_task(config))


def recalibration_size(section: SuperpositionConfig, num_train: int) -> int:
    """Returns how many of the training examples the recalibration of one network reads.

    By default at most 1,024. With them the test accuracy of sup-tickets differed from that with all 4,096 examples by
    0.02 +- 0.05 points on average (8 seeds), and by 0.13 points from one draw of the examples to another; see
    `experiments/benchmarks/recalibration.py`.
    """
    examples = section.recalibration_examples
    if examples == "all":
        return num_train
    return min(_RECALIBRATION_EXAMPLES if examples is None else examples, num_train)


def batch_norms(model: Module) -> list[_BatchNorm]:
    """Returns the modules of a network that keep running statistics of batches."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def recalibrate(model: Module, splits: Splits, seed: int, num_examples: int | None = None) -> None:
    """Replaces every BatchNorm's running statistics by the mean over one seeded pass of the training examples.

    A layer that stays in evaluation mode, or that the forward pass does not reach, keeps its statistics. Examples are
    augmented as in training. Batches have nearly equal sizes of at least 2 examples, because each counts the same.

    Args:
        model: The network.
        splits: The data.
        seed: Seed of the order of the pass.
        num_examples: Number of examples to read; all when left out.

    Source: Izmailov et al., 1803.05407, section 3.2.
    """
    with _modes_restored(model):
        model.train()
        # A model may keep some layers in evaluation mode while it trains; these keep their statistics.
        norms = [norm for norm in batch_norms(model) if norm.training]
        if not norms:
            return
        device = next(model.parameters()).device
        before = [(norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
        size = min(len(splits.train), num_examples or len(splits.train))
        parts = torch.arange(size).tensor_split(-(-size // _batch_size(splits.train)))
        for inputs, _ in splits.train.epoch(seed, [len(part) for part in parts], device):
            apply(model, inputs)
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:  # the forward pass does not reach it
                for buffer, old in zip(norm.buffers(), buffers, strict=True):
                    buffer.copy_(old)
