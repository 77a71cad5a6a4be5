"""Whether the validation set suffices for what is decided on it."""

from __future__ import annotations

from suptickets_ray.config import Config
from suptickets_ray.metric import ACCURACY
from suptickets_ray.training.data import Splits
from suptickets_ray.training.tasks import make_task


def warnings_about(config: Config, splits: Splits) -> list[str]:
    """Returns warnings about a validation set that is too small."""
    found = []
    count, tolerance = len(splits.validation), config.superposition.gate_tolerance
    task = make_task(config)
    if tolerance and task.metric == ACCURACY and count * tolerance < 1:
        found.append(
            f"one of the {count} validation examples is {1 / count:.2%} of the accuracy, more than "
            f"superposition.gate_tolerance={tolerance:g}: the gate decides on single examples. Use a larger validation "
            "set, or superposition.gate_tolerance=none."
        )
    if config.task.name != "classification":
        return found
    missing = sorted(set(range(splits.num_classes)) - set(splits.validation.all_labels().tolist()))
    if missing:
        found.append(
            f"{len(missing)} of {splits.num_classes} classes have no validation example, e.g. class {missing[0]}. "
            "Use a larger validation set."
        )
    return found
