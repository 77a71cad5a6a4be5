"""What a stored ticket is worth on a split: accuracy, loss, calibration, and every class for itself."""

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
from suptickets_ray.offline.stored_ticket import build_network, device_of, read_ticket, recipe_of, splits_of
from suptickets_ray.training.determinism import arithmetic_of
from suptickets_ray.training.evaluation import predict, score

SPLITS: dict[str, str] = {
    "train": "the training examples, not augmented, with the labels that were trained on",
    "validation": "what every choice of a run is made on",
    "test": "what no choice has seen",
}
NUM_BINS = 15
"""Bins of the calibration error: the number of Guo et al."""
_TOP = 5
_LISTED_CLASSES, _WORST_CLASSES = 20, 10
"""Up to so many classes are all shown in a terminal; of more, so many."""


def evaluate_stored(
    path: str, split: str = "test", recipe: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns what a ticket is worth on a split of its recipe's data, computed as the run computed it.

    Args:
        path: The ticket's file, local or on any file system that pyarrow.fs knows.
        split: A row of `SPLITS`.
        recipe: A recipe's file or name; that of the run in whose folder the ticket lies when left out.
        overrides: Settings of the data, e.g. "data.root=/data".

    Returns:
        ticket (its path), digest, density, provenance, split, and what `assess` gives. All are JSON values.

    Raises:
        ValueError: If there is no such ticket, split or recipe, or they do not fit together.
    """
    choose(SPLITS, split, "split")
    stored = read_ticket(path)
    config = recipe_of(path, recipe, overrides)
    splits = splits_of(path, config)
    with arithmetic_of(config):
        model = build_network(config, splits, stored.ticket).to(device_of(config))
        examples = getattr(splits, split)
        assessed = assess(predict(model, examples), examples.all_labels())
    return {
        "ticket": stored.path,
        "digest": stored.ticket.digest,
        "density": stored.ticket.density,
        "provenance": stored.ticket.provenance,
        "split": split,
        **assessed,
    }


def assess(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Returns every score of logits (n, num_classes) against labels (n,), as JSON values; None for what is no number.

    Returns:
        num_examples, num_classes, accuracy and top5_accuracy (fractions; the latter where there are more than 5
        classes), loss (mean cross-entropy, nats), calibration_error and calibration_bins (see `calibrate`), and classes
        (see `assess_classes`).
    """
    num_classes = logits.shape[1]
    scores = score(logits, labels)
    assessed: dict[str, Any] = {
        "num_examples": len(labels),
        "num_classes": num_classes,
        "accuracy": scores["accuracy"],
        "loss": _finite(scores["loss"]),
    }
    if num_classes > _TOP:
        hits = logits.topk(_TOP, 1).indices.eq(labels[:, None]).any(1)
        assessed["top5_accuracy"] = float(hits.double().mean())
    error, bins = calibrate(logits, labels)
    assessed |= {"calibration_error": error, "calibration_bins": bins}
    return assessed | {"classes": assess_classes(logits.argmax(1), labels, num_classes)}


def calibrate(
    logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS
) -> tuple[float | None, list[dict[str, float | int | None]]]:
    """Returns the expected calibration error of logits (n, num_classes) against labels (n,), and its bins.

    Predictions are binned by their confidence, the greatest probability; the error is the mean of |accuracy - mean
    confidence| over the bins, each weighted by its share of the examples.

    Args:
        logits: What the network gave.
        labels: The true classes.
        num_bins: Number of bins of equal width, each without its lower end.

    Returns:
        The error, a fraction, None for logits that are no numbers; for each bin low, high, num_examples, accuracy and
        confidence, the latter two None where the bin is empty.

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
    gaps = (abs(right - sure) for right, sure in zip(total_correct, total_confidence, strict=True))
    return _finite(sum(gaps) / len(labels)), bins


def assess_classes(predicted: Tensor, labels: Tensor, num_classes: int) -> list[dict[str, Any]]:
    """Returns class, num_examples, accuracy and precision of every class, in order.

    Args:
        predicted: Predicted classes (n,).
        labels: True classes (n,).
        num_classes: Number of classes.

    Returns:
        For each class its number, how many examples it has, the share of them that was recognized (accuracy, also
        called recall), and the share of what was taken for it that belongs to it (precision); None where there is none.
    """
    examples = torch.bincount(labels, minlength=num_classes).tolist()
    taken = torch.bincount(predicted, minlength=num_classes).tolist()
    correct = torch.bincount(labels[predicted.eq(labels)], minlength=num_classes).tolist()
    return [
        {
            "class": number,
            "num_examples": examples[number],
            "accuracy": correct[number] / examples[number] if examples[number] else None,
            "precision": correct[number] / taken[number] if taken[number] else None,
        }
        for number in range(num_classes)
    ]


def evaluation_tables(report: dict[str, Any]) -> Group:
    """Returns what `evaluate_stored` gave for a terminal: the scores, and the classes, of many the worst ones."""
    scores = Table(title=f"{report['num_examples']:,} {report['split']} examples")
    scores.add_column("score")
    scores.add_column("value", justify="right")
    scores.add_row("accuracy", _percent(report["accuracy"]), style="bold")
    if "top5_accuracy" in report:
        scores.add_row(f"top-{_TOP} accuracy", _percent(report["top5_accuracy"]))
    scores.add_row("loss (nats)", "no number" if report["loss"] is None else f"{report['loss']:.4f}")
    scores.add_row(f"calibration error ({NUM_BINS} bins)", _percent(report["calibration_error"]))
    scores.add_row("density", f"{report['density']:.4f}")

    rows, title = report["classes"], "classes"
    if len(rows) > _LISTED_CLASSES:
        title = f"the {_WORST_CLASSES} worst of {len(rows)} classes; --json has all"
        seen = [row for row in rows if row["accuracy"] is not None]
        rows = sorted(seen, key=lambda row: float(row["accuracy"]))[:_WORST_CLASSES]
    classes = Table(title=title)
    for column in ("class", "examples", "accuracy", "precision"):
        classes.add_column(column, justify="right")
    for row in rows:
        cells = (str(row["class"]), f"{row['num_examples']:,}", _percent(row["accuracy"]), _percent(row["precision"]))
        classes.add_row(*cells)
    return Group(scores, classes)


def evaluation_json(report: dict[str, Any]) -> str:
    """Returns what `evaluate_stored` gave as JSON, for other programs."""
    return json.dumps(report, indent=2, allow_nan=False)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
