"""What a run leaves as `result.json`."""

from __future__ import annotations

import math
import platform
import time
from importlib.metadata import version
from typing import Any

from suptickets_ray import __version__
from suptickets_ray.config import Config
from suptickets_ray.config_io import config_digest, to_dict


class Clock:
    """Seconds of each phase of this start of the run."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a phase."""
        now = time.monotonic()
        self._seconds[name] = round(now - self._last, 3)
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of every phase, and `total`."""
        return self._seconds | {"total": round(time.monotonic() - self._start, 3)}


def assemble_result(
    config: Config, report: dict[str, Any], seconds: dict[str, float], warnings: list[str]
) -> dict[str, Any]:
    """Returns the content of `result.json`, with mean and best ticket, and warnings that nobody should overlook.

    The best ticket is chosen on validation. A phase that an earlier start of the run had finished counts no seconds.

    Args:
        config: The recipe.
        report: What the superposer found.
        seconds: Of each phase.
        warnings: What was noticed on the way.
    """
    tickets = report["tickets"]
    keys = ("accuracy", "loss", "validation_accuracy", "validation_loss")
    best = max(tickets, key=lambda ticket: ticket["validation_accuracy"])
    result = {
        "state": "complete",
        "name": config.name,
        **report,
        "mean_ticket": {key: sum(ticket[key] for ticket in tickets) / len(tickets) for key in keys},
        "best_ticket": best,
        "rejected": [[ticket["chain"], ticket["cycle"]] for ticket in tickets if not ticket["accepted"]],
        "warnings": list(warnings),
        "seconds": seconds,
        "versions": {
            "suptickets_ray": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("ray", "torch", "pyarrow")},
        },
        "config": to_dict(config),
        "config_digest": config_digest(config),
    }
    superposed = report["superposed"]
    rivals = {
        f"the best single ticket (chain {best['chain']}, cycle {best['cycle']})": best,
        "the network of phase one": report["pretrained"],
    }
    for words, rival in rivals.items():
        if superposed["validation_accuracy"] < rival["validation_accuracy"]:
            result["warnings"].append(
                f"superposing did not pay: on validation the sup-ticket has {superposed['validation_accuracy']:.2%}, "
                f"{words} {rival['validation_accuracy']:.2%}."
            )
    if len(result["rejected"]) == len(tickets):
        result["warnings"].append("the gate admitted no ticket: the result is the network of phase one.")
    return result


def without_nan(value: Any) -> Any:
    """Returns the value with every number that JSON does not know, such as a diverged ticket's loss, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return [without_nan(inner) for inner in value] if isinstance(value, list) else value
