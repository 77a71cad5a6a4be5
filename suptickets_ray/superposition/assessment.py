"""Assesses whether superposing paid, and whether the difference is beyond chance. No other module decides this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from suptickets_ray.metric import ACCURACY, Metric

_LEVEL = 0.05
"""Two-sided: a difference whose p-value is above this may be chance."""
_SIGN_TEST_EXACT_UP_TO = 1000
_RIVALS = ("pretrained", "mean_ticket", "best_ticket", "ensemble")
Outcome = Literal["gain", "loss", "open"]


class Gain(NamedTuple):
    """By how much the sup-ticket's test score is better than that of another network."""

    mean: float
    """For the accuracy a fraction: 0.01 is one percentage point. Negative if the sup-ticket is worse."""
    error: float | None = None
    """Its standard error. None if it is unknown."""
    num_runs: int = 1
    """Number of runs behind mean and error. With one run, the error is over the test examples."""
    only_one_right: tuple[int, int] | None = None
    """Test examples that only the sup-ticket classifies correctly, and those that only the other network does."""
    metric: Metric = ACCURACY
    num_examples: int | None = None
    """Number of test examples that the error of one run is over; None if it is unknown."""

    @property
    def may_be_chance(self) -> bool:
        """Whether the difference is not significant at the 5 % level.

        Within a run McNemar's exact test, if each example is right or wrong, or else Student's paired t test over the
        examples; over runs Student's t test.
        """
        from scipy import special  # imported here: reading a recipe does not need it

        if self.only_one_right is not None and self.num_runs == 1:
            return bool(_mcnemar(*self.only_one_right) > _LEVEL)
        if self.error is None:
            return False
        # In results without the number of examples there are many, so that Student's t is nearly normal.
        size, quantile = (self.num_examples or 0) if self.num_runs < 2 else self.num_runs, 1 - _LEVEL / 2
        errors = special.ndtri(quantile) if size < 2 else special.stdtrit(size - 1, quantile)
        return bool(abs(self.mean) <= self.error * errors)

    def in_points(self) -> str:
        """Returns the difference, e.g. "1.25 ± 0.31 points above", or "0.021 ± 0.004 below" for other metrics."""
        known = self.error is not None and math.isfinite(self.error)
        error = f" ± {self.metric.difference_text(self.error or 0.0)}" if known else ""
        points = " points" if self.metric.is_fraction else ""
        is_above = (self.mean >= 0) == (self.metric.mode == "max")
        return f"{self.metric.difference_text(abs(self.mean))}{error}{points} {'above' if is_above else 'below'}"


class Assessment(NamedTuple):
    """Whether superposing paid in one run."""

    outcome: Outcome
    sentence: str
    """One sentence with the test scores and their errors."""
    warnings: tuple[str, ...]
    """Losses beyond chance. A difference within chance is never a warning."""


def conclusion(over_pretrained: Gain, over_best_ticket: Gain) -> tuple[str, Outcome]:
    """Returns the conclusion of one or more runs as the beginning of a sentence, and its kind.

    Args:
        over_pretrained: Gain over the pretrained network.
        over_best_ticket: Gain over the ticket with the highest validation accuracy.
    """
    if over_pretrained.may_be_chance:
        return "superposing changed nothing beyond chance", "open"
    if over_pretrained.mean <= 0:
        return "superposing did not pay", "loss"
    if over_best_ticket.may_be_chance:
        return "superposing beat pretraining; from the best single ticket it differs by no more than chance", "gain"
    if over_best_ticket.mean < 0:
        return "superposing beat pretraining, but not the best single ticket", "open"
    return "superposing paid", "gain"


def assess(result: Mapping[str, Any]) -> Assessment:
    """Assesses one run on the test set.

    Args:
        result: Content of `result.json`, or results of `Merger.evaluate` and `summarize_tickets`.
    """
    metric = Metric.of_result(result)
    gains = {key: gain_over(result, key) for key in _RIVALS}
    text, outcome = conclusion(gains["pretrained"], gains["best_ticket"])
    is_unchanged = not any(ticket["accepted"] for ticket in result["tickets"])
    if is_unchanged:
        text, outcome = "superposing changed nothing, because the gate admitted no ticket", "open"
    sentence = (
        f"{text[0].upper()}{text[1:]}: the sup-ticket's test {metric.title} is "
        f"{metric.text(result['superposed'][metric.name])}, "
        f"{gains['pretrained'].in_points()} the pretrained network, {gains['mean_ticket'].in_points()} the mean "
        f"ticket, {gains['best_ticket'].in_points()} the best ticket and {gains['ensemble'].in_points()} the ensemble, "
        f"{_describe_ensemble(ensemble_size(result))}."
    )
    warnings = []
    best = result["best_ticket"]
    rivals = {
        "pretrained": "the pretrained network",
        "best_ticket": f"the best single ticket (chain {best.get('chain')}, cycle {best.get('cycle')})",
    }
    for key, name in rivals.items():
        if gains[key].mean < 0 and not gains[key].may_be_chance and not is_unchanged:
            warnings.append(f"superposing did not pay: on test the sup-ticket is {gains[key].in_points()} {name}.")
    return Assessment(outcome, sentence, tuple(warnings))


def gain_over(result: Mapping[str, Any], key: str) -> Gain:
    """Returns the sup-ticket's gain over the network `key` of a result, with its error if the result has one."""
    other, metric = result[key], Metric.of_result(result)
    counts = other.get("only_one_right")
    return Gain(
        metric.gain(result["superposed"][metric.name], other[metric.name]),
        other.get("gain_error"),
        only_one_right=None if counts is None else (counts[0], counts[1]),
        metric=metric,
        num_examples=other.get("num_examples"),
    )


def summarize_tickets(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mean_ticket, best_ticket, rejected, warnings and assessment for a result of `Merger.evaluate`.

    The best ticket is chosen on validation. `rejected` holds the (chain, cycle) of tickets that the gate rejected.
    """
    tickets, metric = report["tickets"], Metric.of_result(report)
    keys = (metric.name, "loss", f"validation_{metric.name}", "validation_loss")
    sign = 1 if metric.mode == "max" else -1
    best = max(tickets, key=lambda ticket: sign * float(ticket[f"validation_{metric.name}"]))
    mean = {key: sum(ticket[key] for ticket in tickets) / len(tickets) for key in keys}
    summary = {
        "mean_ticket": mean | report.get("mean_ticket", {}),
        "best_ticket": best,
        "rejected": [[ticket["chain"], ticket["cycle"]] for ticket in tickets if not ticket["accepted"]],
    }
    assessment = assess({**report, **summary})
    warnings = list(assessment.warnings)
    if len(summary["rejected"]) == len(tickets):
        warnings.append("the gate admitted no ticket: the result is the pretrained network.")
    if report.get("num_diverged"):
        warnings.append(
            f"{report['num_diverged']} tickets have diverged; the unpruned mean and the ensemble are without them."
        )
    fields = {"outcome": assessment.outcome, "sentence": assessment.sentence}
    return {**summary, "warnings": warnings, "assessment": fields}


def ensemble_size(result: Mapping[str, Any]) -> int:
    """Returns the number of tickets in the ensemble. Diverged tickets are left out."""
    return len(result["tickets"]) - int(result.get("num_diverged", 0))


def _describe_ensemble(size: int) -> str:
    if size < 2:
        return "which is one ticket" if size else "which is the pretrained network, because every ticket has diverged"
    return f"which computes with {size} networks"


def _mcnemar(first: int, second: int) -> float:
    """Returns the two-sided p-value of McNemar's test; exact up to 1,000 discordant examples."""
    from scipy import special  # scipy.stats, which names these functions, takes half a second more to import

    count = first + second
    if count > _SIGN_TEST_EXACT_UP_TO:
        return float(2 * special.ndtr(-abs(first - second) / math.sqrt(count)))
    return min(1.0, float(2 * special.bdtr(min(first, second), count, 0.5))) if count else 1.0
