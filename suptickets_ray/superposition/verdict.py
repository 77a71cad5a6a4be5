"""What the scores of a merge say: mean and best ticket, who was left out, and what nobody should overlook."""

from __future__ import annotations

from typing import Any


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """Returns mean_ticket, best_ticket, rejected and warnings of a merge. The best ticket is chosen on validation.

    Args:
        report: What `Merger.judge` returned.
    """
    tickets, superposed = report["tickets"], report["superposed"]
    keys = ("accuracy", "loss", "validation_accuracy", "validation_loss")
    best = max(tickets, key=lambda ticket: ticket["validation_accuracy"])
    rejected = [[ticket["chain"], ticket["cycle"]] for ticket in tickets if not ticket["accepted"]]
    warnings = []
    rivals = {
        f"the best single ticket (chain {best['chain']}, cycle {best['cycle']})": best,
        "the pretrained network": report["pretrained"],
    }
    for words, rival in rivals.items():
        if superposed["validation_accuracy"] < rival["validation_accuracy"]:
            warnings.append(
                f"superposing did not pay: on validation the sup-ticket has {superposed['validation_accuracy']:.2%}, "
                f"{words} {rival['validation_accuracy']:.2%}."
            )
    if len(rejected) == len(tickets):
        warnings.append("the gate admitted no ticket: the result is the pretrained network.")
    if report.get("num_diverged"):
        warnings.append(
            f"{report['num_diverged']} tickets have diverged; the unpruned mean and the ensemble are without them."
        )
    return {
        "mean_ticket": {key: sum(ticket[key] for ticket in tickets) / len(tickets) for key in keys}
        | report.get("mean_ticket", {}),
        "best_ticket": best,
        "rejected": rejected,
        "warnings": warnings,
    }
