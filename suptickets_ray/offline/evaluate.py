"""Evaluates a stored ticket on a split: accuracy, loss, calibration, and the accuracy of each class."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor

from suptickets_ray.lookup import choose
from suptickets_ray.metric import Metric
from suptickets_ray.offline.stored_ticket import build_network, device_of, read_ticket, recipe_of, splits_of
from suptickets_ray.training.determinism import worker_determinism
from suptickets_ray.training.evaluation import evaluate, measure_predictions, predict
from suptickets_ray.training.tasks import classification, make_task

SPLITS: dict[str, str] = {
    "train": "the training examples without augmentation, with the labels used in training",
    "validation": "the examples on which a run makes all its choices",
    "test": "the examples that no choice depends on",
}
NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al., 1706.04599."""
_TOP = 5
_MAX_LISTED_CLASSES, _NUM_WORST_CLASSES = 20, 10
"""A terminal shows all classes up to the first number; beyond that, it shows the worst ones, the second number."""


def evaluate_stored(
    path: str, split: str = "test", recipe: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the scores of a ticket on a split of its recipe's data, computed as in the run.

    Args:
        path: The ticket's file, local or on any file system that pyarrow.fs supports.
        split: A key of `SPLITS`.
        recipe: File or name of a recipe. None is the recipe of the run whose folder contains the ticket.
        overrides: Settings of the data, e.g. "data.root=/data".

    Returns:
        ticket (its path), digest, density, provenance, split, task_metric, and the task's metrics and loss; for
        classification the scores of `evaluate_logits`. All are JSON values.

    Raises:
        ValueError: If the ticket, split or recipe does not exist, or if the recipe does not match the ticket.
    """
    choose(SPLITS, split, "split")
    stored = read_ticket(path)
    config = recipe_of(path, recipe, overrides)
    splits = splits_of(path, config)
    with worker_determinism(config):
        model = build_network(config, splits, stored.ticket).to(device_of(config))
        examples, task = getattr(splits, split), make_task(config)
        if config.task.name == "classification":
            scores = evaluate_logits(predict(model, examples), examples.all_labels())
        else:
            found = evaluate(model, examples, task).items()
            scores = {"num_examples": len(examples), **{name: _finite(value) for name, value in found}}
    return {
        "ticket": stored.path,
        "digest": stored.ticket.digest,
        "density": stored.ticket.density,
        "provenance": stored.ticket.provenance,
        "split": split,
        "task_metric": task.metric.to_dict(),
        **scores,
        "metrics": [metric.to_dict() for metric in task.metrics],
    }


def evaluate_logits(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Returns all scores of logits (n, num_classes) against labels (n,), as JSON values. NaN and infinity become None.

    Returns:
        num_examples, num_classes, accuracy and top5_accuracy (fractions; the latter with more than 5 classes only),
        loss (mean cross-entropy, nats), calibration_error and calibration_bins (see `calibration`), and classes (see
        `evaluate_classes`).
    """
    num_classes = logits.shape[1]
    task = classification()
    measured = measure_predictions(task.predict(logits), labels, task).scores
    evaluated: dict[str, Any] = {
        "num_examples": len(labels),
        "num_classes": num_classes,
        "accuracy": measured["accuracy"],
        "loss": _finite(measured["loss"]),
    }
    if num_classes > _TOP:
        hits = logits.topk(_TOP, 1).indices.eq(labels[:, None]).any(1)
        evaluated["top5_accuracy"] = float(hits.double().mean())
    error, bins = calibration(logits, labels)
    evaluated |= {"calibration_error": error, "calibration_bins": bins}
    return evaluated | {"classes": evaluate_classes(logits.argmax(1), labels, num_classes)}


def calibration(
    logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS
) -> tuple[float | None, list[dict[str, float | int | None]]]:
    """Returns the expected calibration error of logits (n, num_classes) against labels (n,), and its bins.

    Predictions are binned by their confidence, the highest probability. The error is the mean of |accuracy - mean
    confidence| over the bins, each weighted by its fraction of the examples.

    Args:
        logits: The network's logits (n, num_classes).
        labels: The true classes (n,).
        num_bins: Number of bins of equal width. A bin excludes its lower end.

    Returns:
        The error, a fraction, or None if logits are not finite. For each bin low, high, num_examples, accuracy and
        confidence; the last two are None for an empty bin.

    Source: Guo et al., 1706.04599, section 2, equation 3.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    correct = predicted.eq(labels).double()
    ends = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    of_bin = torch.bucketize(confidence, ends[1:-1])
    counts = torch.bincount(of_bin, minlength=num_bins).tolist()
    total_correct = torch.bincount(of_bin, correct, num_bins).tolist()
    total_confidence = torch.bincount(of_bin, confidence, num_bins).tolist()
    bins: list[dict[str, float | int | None]] = [
        {
            "low": float(ends[index]),
            "high": float(ends[index + 1]),
            "num_examples": count,
            "accuracy": total_correct[index] / count if count else None,
            "confidence": _finite(total_confidence[index] / count) if count else None,
        }
        for index, count in enumerate(counts)
    ]
    gaps = (abs(hits - confidences) for hits, confidences in zip(total_correct, total_confidence, strict=True))
    return _finite(sum(gaps) / len(labels)), bins


def evaluate_classes(predicted: Tensor, labels: Tensor, num_classes: int) -> list[dict[str, Any]]:
    """Returns class, num_examples, accuracy and precision of every class, in order.

    Args:
        predicted: Predicted classes (n,).
        labels: True classes (n,).
        num_classes: Number of classes.

    Returns:
        For each class its number, its number of examples, the fraction of them that is predicted correctly (accuracy,
        also called recall), and the fraction of its predictions that is correct (precision). A fraction of none is
        None.
    """
    examples = torch.bincount(labels, minlength=num_classes).tolist()
    predictions = torch.bincount(predicted, minlength=num_classes).tolist()
    correct = torch.bincount(labels[predicted.eq(labels)], minlength=num_classes).tolist()
    return [
        {
            "class": number,
            "num_examples": examples[number],
            "accuracy": correct[number] / examples[number] if examples[number] else None,
            "precision": correct[number] / predictions[number] if predictions[number] else None,
        }
        for number in range(num_classes)
    ]


def evaluation_tables(report: dict[str, Any]) -> Group:
    """Returns the result of `evaluate_stored` as tables for a terminal: scores, and all or the worst classes."""
    scores = Table(title=f"{report['num_examples']:,} {report['split']} examples")
    scores.add_column("score")
    scores.add_column("value", justify="right")
    metric = Metric.of_result(report)
    for shown in (Metric(**some) for some in report["metrics"]):
        scores.add_row(shown.title, shown.text(report[shown.name]), style="bold" if shown == metric else None)
    if "top5_accuracy" in report:
        scores.add_row(f"top-{_TOP} accuracy", _percent(report["top5_accuracy"]))
    unit = " (nats)" if "classes" in report else ""
    scores.add_row(f"loss{unit}", "not finite" if report["loss"] is None else f"{report['loss']:.4f}")
    if "calibration_error" in report:
        scores.add_row(f"calibration error ({NUM_BINS} bins)", _percent(report["calibration_error"]))
    scores.add_row("density", f"{report['density']:.4f}")
    if "classes" not in report:
        return Group(scores)
    rows, title = report["classes"], "classes"
    if len(rows) > _MAX_LISTED_CLASSES:
        title = f"the {_NUM_WORST_CLASSES} worst of {len(rows)} classes; --json prints all"
        with_examples = [row for row in rows if row["accuracy"] is not None]
        rows = sorted(with_examples, key=lambda row: float(row["accuracy"]))[:_NUM_WORST_CLASSES]
    classes = Table(title=title)
    for column in ("class", "examples", "accuracy", "precision"):
        classes.add_column(column, justify="right")
    for row in rows:
        cells = (str(row["class"]), f"{row['num_examples']:,}", _percent(row["accuracy"]), _percent(row["precision"]))
        classes.add_row(*cells)
    return Group(scores, classes)


def evaluation_json(report: dict[str, Any]) -> str:
    """Returns the result of `evaluate_stored` as JSON, for other programs."""
    return json.dumps(report, indent=2, allow_nan=False)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.2%}"
