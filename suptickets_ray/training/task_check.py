"""Checks the labels of all splits, and what a task computes from a network's outputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.splits import SPLITS
from suptickets_ray.training.loop import Learner
from suptickets_ray.training.nested import apply, map_tensors
from suptickets_ray.training.task import Task


def reason_of(error: Exception) -> str:
    """Returns type and text of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def check_labels(splits: Splits, task: Task) -> None:
    """Checks the labels of all splits before any training."""
    for name in SPLITS:
        labels = getattr(splits, name).all_labels()
        if labels.is_floating_point() and not bool(labels.isfinite().all()):
            raise ValueError(f"the {name} labels must be finite; some are NaN or infinite. Correct or remove them.")
        try:
            task.check_targets(labels, splits.num_classes)
        except Exception as error:
            # A built-in task's text begins with "labels"; a user-defined task may raise anything.
            text = str(error) if isinstance(error, ValueError) else f"labels must fit task.name: {error!r}"
            raise ValueError(f"the {name} {text}") from error


def warn_of_empty_classes(splits: Splits) -> None:
    """Warns if the number of classes, which is counted by the highest label, includes classes without an example."""
    labels = splits.train.all_labels()
    if empty := torch.bincount(labels, minlength=splits.num_classes).eq(0).nonzero().flatten().tolist():
        warnings.warn(
            f"{len(empty)} of {splits.num_classes} classes have no training example, the first of them {empty[0]}. "
            "Number the classes from 0 on, or give num_classes.",
            stacklevel=2,
        )


def checked_outputs(learner: Learner, splits: Splits, name: str, size: int) -> tuple[Any, Tensor]:
    """Returns the outputs for the first examples of a split, and their labels. Checks what the task computes."""
    examples = getattr(splits, name)
    inputs, labels = examples.batch(torch.arange(min(size, len(examples))))
    try:
        outputs = apply(learner.model, inputs)
    except Exception as error:
        shapes = map_tensors(lambda tensor: tuple(tensor.shape), inputs)
        raise ValueError(
            f"Cannot run the network of model.name on {name} inputs of shape {shapes}: {reason_of(error)}"
        ) from error
    learner.task.check_outputs(outputs, splits.num_classes)
    with torch.no_grad():
        _check_task(learner.task, outputs, labels, name)
    return outputs, labels


def _check_task(task: Task, outputs: Any, labels: Tensor, name: str) -> None:
    """Calls the functions of a task, because they may be user-defined."""
    results: dict[str, Any] = {}
    try:
        results["predictions"] = predictions = task.predict(outputs)
        results["measured"] = measured = task.measure(predictions, labels)
        results["loss"] = loss = task.loss(outputs, labels)
    except Exception as error:
        steps = ("predictions", "measured", "loss")
        failed = ("predict", "measure", "loss")[len([step for step in steps if step in results])]
        raise ValueError(
            f"Cannot call {failed!r} of task.name on {name} examples: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(predictions, Tensor) or len(predictions) != len(labels):
        raise ValueError(
            f"'predict' of task.name must return a tensor of {len(labels)} predictions; got {predictions!r}."
        )
    if not bool(predictions.isfinite().all()):
        raise ValueError(f"model.name must give finite outputs for {name} inputs; some are NaN or infinite.")
    for metric in task.metrics:
        values = measured.get(metric.name) if isinstance(measured, Mapping) else None
        if not isinstance(values, Tensor) or tuple(values.shape) != (len(labels),):
            found = tuple(values.shape) if isinstance(values, Tensor) else "no tensor"
            raise ValueError(
                f"'measure' of task.name must return {metric.name!r} of shape ({len(labels)},), a value for each "
                f"example; got {found}."
            )
        if not bool(values.isfinite().all()):
            raise ValueError(f"'measure' of task.name must return finite values; {metric.name!r} is NaN or infinite.")
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(loss.isfinite().all()):
        raise ValueError(f"'loss' of task.name must return a finite scalar tensor; got {loss!r} for {name} examples.")
