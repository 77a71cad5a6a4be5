"""Tasks by name: what networks are trained for. A new task takes one function and one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
)

from suptickets_ray.config import Config
from suptickets_ray.lookup import choose, choose_or_import
from suptickets_ray.metric import ACCURACY, Metric
from suptickets_ray.training.nested import logits_of
from suptickets_ray.training.task import Task
from suptickets_ray.training.user_code import call_with, takes

_SMALLEST = 1e-300
"""Probabilities are at least this large in logarithms."""


def classification(label_smoothing: float = 0.0) -> Task:
    """One class per example: targets (n,), outputs (n, classes); compared by the accuracy."""

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return cross_entropy(logits_of(outputs), targets, reduction="sum", label_smoothing=label_smoothing)

    def measure(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": predictions.argmax(1).eq(targets), "loss": _cross_entropy(predictions, targets)}

    def check_targets(targets: Tensor, num_outputs: int) -> None:
        _require_classes(targets, num_outputs, 1)

    return Task(
        loss=loss,
        predict=_probabilities,
        measure=measure,
        metrics=(ACCURACY,),
        reduction="sum",
        check_targets=check_targets,
        check_outputs=_check_logits,
    )


def multilabel(threshold: float = 0.5) -> Task:
    """Any number of labels per example: targets (n, labels) of 0 and 1, outputs (n, labels); compared by the mean F1.

    Args:
        threshold: Probability from which a label is predicted, in (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"task.options.threshold must be in (0, 1); got {threshold}.")

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        logits = logits_of(outputs)
        each = binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        return each.flatten(1).mean(1).sum()

    def measure(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        chosen, true = predictions >= threshold, targets > 0.5
        both, either = (chosen & true).sum(1), chosen.sum(1) + true.sum(1)
        right = predictions.double().where(true, 1 - predictions.double())
        return {
            "f1": torch.where(either > 0, 2 * both / either.clamp_min(1), 1.0),
            "exact_match": chosen.eq(true).all(1),
            "loss": -right.clamp_min(_SMALLEST).log().mean(1),
        }

    def check_targets(targets: Tensor, num_outputs: int) -> None:
        if targets.ndim != 2 or targets.shape[1] != num_outputs or not bool(((targets == 0) | (targets == 1)).all()):
            raise ValueError(
                f"labels must be 0 or 1, of shape (n, {num_outputs}); got shape {tuple(targets.shape)} with values "
                f"from {targets.min()} to {targets.max()}. Give one column per label, as bool or float."
            )

    return Task(
        loss=loss,
        predict=lambda outputs: logits_of(outputs).double().sigmoid(),
        measure=measure,
        metrics=(Metric("f1", is_fraction=True), Metric("exact_match", is_fraction=True)),
        reduction="sum",
        check_targets=check_targets,
        check_outputs=_check_logits,
    )


REGRESSION_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": mse_loss, "l1": l1_loss, "huber": huber_loss}
"""Losses of the task regression, its option `loss`."""


def regression(loss: str = "mse") -> Task:
    """Numbers per example: float targets (n,) or (n, outputs), outputs (n, outputs); compared by the squared error.

    Args:
        loss: A key of `REGRESSION_LOSSES`.
    """
    chosen = choose(REGRESSION_LOSSES, loss, "task.options.loss")

    def each(outputs: Any, targets: Tensor) -> Tensor:
        values = logits_of(outputs).reshape(targets.shape)
        return chosen(values, targets.to(values.dtype), reduction="none").reshape(len(targets), -1).mean(1)

    def measure(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        differences = (predictions.double().reshape(targets.shape) - targets.double()).reshape(len(targets), -1)
        return {
            "mean_squared_error": differences.square().mean(1),
            "mean_absolute_error": differences.abs().mean(1),
            "loss": each(predictions.double(), targets),
        }

    def check_targets(targets: Tensor, num_outputs: int) -> None:
        columns = targets.shape[1] if targets.ndim > 1 else 1
        if targets.ndim > 2 or columns != num_outputs or not targets.is_floating_point():
            raise ValueError(
                f"labels must be floating-point numbers of shape (n,) or (n, {num_outputs}); got {targets.dtype} of "
                f"shape {tuple(targets.shape)}."
            )

    return Task(
        loss=lambda outputs, targets: each(outputs, targets).sum(),
        predict=lambda outputs: logits_of(outputs).double(),
        measure=measure,
        metrics=(Metric("mean_squared_error", "min"), Metric("mean_absolute_error", "min")),
        reduction="sum",
        check_targets=check_targets,
        check_outputs=_check_logits,
    )


def segmentation(label_smoothing: float = 0.0, ignore_index: int = 255) -> Task:
    """A class per pixel: targets (n, h, w), outputs (n, classes, h, w); compared by the mean IoU of each image.

    Args:
        label_smoothing: Fraction of each label's weight that is spread over all classes.
        ignore_index: Label of pixels that do not count.
    """

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        logits = logits_of(outputs)
        each = cross_entropy(
            logits, targets, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
        )
        return _mean_where(each, targets != ignore_index).sum()

    def measure(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        counts, chosen = targets != ignore_index, predictions.argmax(1)
        classes = torch.arange(predictions.shape[1]).view(1, -1, 1, 1)
        found, true = chosen[:, None].eq(classes) & counts[:, None], targets[:, None].eq(classes)
        both, either = (found & true).flatten(2).sum(2), (found | true).flatten(2).sum(2)
        present = either > 0  # classes that are neither in the image nor predicted do not count
        iou = (both / either.clamp_min(1)).where(present, 0.0).sum(1) / present.sum(1).clamp_min(1)
        safe = targets.where(counts, 0)
        return {
            "mean_iou": iou,
            "pixel_accuracy": _mean_where(chosen.eq(targets).double(), counts),
            "loss": _mean_where(_cross_entropy(predictions, safe), counts),
        }

    def check_targets(targets: Tensor, num_outputs: int) -> None:
        _require_classes(targets.where(targets != ignore_index, 0), num_outputs, 3)

    return Task(
        loss=loss,
        predict=_probabilities,
        measure=measure,
        metrics=(Metric("mean_iou", is_fraction=True), Metric("pixel_accuracy", is_fraction=True)),
        reduction="sum",
        check_targets=check_targets,
        check_outputs=_check_logits,
    )


def language_model(label_smoothing: float = 0.0, ignore_index: int = -100) -> Task:
    """The next token at every position: targets (n, t), outputs (n, t, tokens); compared by the cross-entropy.

    Targets are the inputs' next tokens, already shifted. A value of a sequence is the mean over its tokens.

    Args:
        label_smoothing: Fraction of each token's weight that is spread over all tokens.
        ignore_index: Target of positions that do not count, such as padding.
    """

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        logits = logits_of(outputs).transpose(1, 2)
        each = cross_entropy(
            logits, targets, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
        )
        return _mean_where(each, targets != ignore_index).sum()

    def measure(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        counts = targets != ignore_index
        each = _cross_entropy(predictions.transpose(1, 2), targets.where(counts, 0))
        return {
            "cross_entropy": _mean_where(each, counts),
            "token_accuracy": _mean_where(predictions.argmax(2).eq(targets).double(), counts),
            "loss": _mean_where(each, counts),
        }

    def check_targets(targets: Tensor, num_outputs: int) -> None:
        _require_classes(targets.where(targets != ignore_index, 0), num_outputs, 2)

    return Task(
        loss=loss,
        predict=lambda outputs: logits_of(outputs).softmax(2),
        measure=measure,
        metrics=(Metric("cross_entropy", "min"), Metric("token_accuracy", is_fraction=True)),
        reduction="sum",
        check_targets=check_targets,
        check_outputs=lambda outputs, num_outputs: _check_logits(outputs, num_outputs, dimension=2),
    )


TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "multilabel": multilabel,
    "regression": regression,
    "segmentation": segmentation,
    "language_model": language_model,
}


def make_task(config: Config) -> Task:
    """Returns the task of a recipe.

    Raises:
        ValueError: If it is unknown, does not take an option or label smoothing, or its function returns no Task.
    """
    name = config.task.name
    build = choose_or_import(TASKS, name, "task")
    smoothing = config.train.label_smoothing
    if smoothing and not takes(build, "label_smoothing"):
        raise ValueError(f"train.label_smoothing has no effect with task {name!r}; got {smoothing}. Leave it out.")
    if "label_smoothing" in config.task.options:
        raise ValueError("task.options must not hold 'label_smoothing'. Rename it to train.label_smoothing.")
    task = call_with(build, "task.name", {"label_smoothing": smoothing}, config.task.options)
    if not isinstance(task, Task) or not task.metrics:
        raise ValueError(
            f"task.name must name a function that returns a suptickets_ray.Task with at least one metric; {name!r} "
            f"gave {type(task).__name__}."
        )
    return task


def _probabilities(outputs: Any) -> Tensor:
    return logits_of(outputs).double().softmax(1)


def _cross_entropy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Returns -log of the probability (n, classes, ...) of each target (n, ...), in nats."""
    chosen = probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
    return -chosen.double().clamp_min(_SMALLEST).log()


def _mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Returns the mean of the values (n, ...) of each example that count; 0 if none does."""
    counted = values.masked_fill(~counts, 0).flatten(1).sum(1)
    return counted / counts.flatten(1).sum(1).clamp_min(1)


def _require_classes(targets: Tensor, num_outputs: int, dimensions: int) -> None:
    shape = "(n,)" if dimensions == 1 else f"of {dimensions} dimensions"
    if targets.is_floating_point():
        raise ValueError(f"labels must be whole numbers, one class each; got {targets.dtype}.")
    if targets.ndim != dimensions or int(targets.min()) < 0 or int(targets.max()) >= num_outputs:
        raise ValueError(
            f"labels must be classes 0 to {num_outputs - 1}, of shape {shape}; got values from {targets.min()} to "
            f"{targets.max()}, of shape {tuple(targets.shape)}."
        )


def _check_logits(outputs: Any, num_outputs: int, dimension: int = 1) -> None:
    logits = logits_of(outputs)
    if logits.layout is not torch.strided or not logits.is_floating_point():
        raise ValueError(
            f"model.name must return a strided tensor of floating-point logits; got {logits.layout} of {logits.dtype}."
        )
    shape = tuple(logits.shape)
    if len(shape) <= dimension or shape[dimension] != num_outputs:
        expected = ", ".join(str(num_outputs if index == dimension else size) for index, size in enumerate(shape))
        raise ValueError(
            f"model.name must give logits of shape ({expected}); got {shape}."
            if len(shape) > dimension
            else f"model.name must give logits with {num_outputs} outputs in dimension {dimension}; got shape {shape}."
        )
