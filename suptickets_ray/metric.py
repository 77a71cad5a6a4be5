"""The value that the gate, a search and a report compare networks by, e.g. the accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """A measured value of a network."""

    name: str
    """Its key in results, e.g. "accuracy" or "mean_squared_error"."""
    mode: Literal["max", "min"] = "max"
    """Whether a higher ("max") or a lower ("min") value is better."""
    is_fraction: bool = False
    """Whether it is a fraction in [0, 1], which is shown in percent, and its differences in percentage points."""

    def __post_init__(self) -> None:
        """Raises ValueError if the name is not a plain word, or the mode is unknown."""
        if not self.name.isidentifier():
            raise ValueError(f"the name of a metric must be letters, digits and underscores; got {self.name!r}.")
        if self.mode not in ("max", "min"):
            raise ValueError(f"the mode of metric {self.name!r} must be 'max' or 'min'; got {self.mode!r}.")

    @property
    def title(self) -> str:
        """The name with spaces, for users."""
        return self.name.replace("_", " ")

    @property
    def worst(self) -> float:
        """A value that is worse than every other one."""
        return -math.inf if self.mode == "max" else math.inf

    def gain(self, value: float, other: float) -> float:
        """Returns by how much a value is better than another one; negative if it is worse."""
        return value - other if self.mode == "max" else other - value

    def is_better(self, value: float, other: float) -> bool:
        """Returns whether a value is better than another one. NaN is never better."""
        return self.gain(value, other) > 0

    def text(self, value: float | None) -> str:
        """Returns a value for users: "84.85%" for a fraction, else 4 significant digits; empty for None."""
        if value is None:
            return ""
        return f"{value:.2%}" if self.is_fraction else f"{value:.4g}"

    def difference_text(self, difference: float, *, sign: str = "") -> str:
        """Returns a difference of two values: percentage points for fractions, with 2 digits, else 4 significant ones.

        Args:
            difference: The difference.
            sign: "+" if a positive one gets a sign.
        """
        return f"{100 * difference:{sign}.2f}" if self.is_fraction else f"{difference:{sign}.4g}"

    @property
    def axis(self) -> str:
        """The label of an axis, e.g. "accuracy (%)"."""
        return f"{self.title} (%)" if self.is_fraction else self.title

    @property
    def scale(self) -> float:
        """Factor of values in figures: 100 for fractions."""
        return 100.0 if self.is_fraction else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the metric as JSON values, as in `result.json`."""
        return asdict(self)

    @staticmethod
    def of_result(result: Mapping[str, Any]) -> Metric:
        """Returns the metric of a content of `result.json`; the accuracy if it names none."""
        found = result.get("task_metric")
        return ACCURACY if found is None else Metric(**found)


ACCURACY = Metric("accuracy", "max", is_fraction=True)
"""The metric of classification."""
