import pytest

from suptickets_ray import load_config
from suptickets_ray.distributed.pipeline.result import Clock, assemble_result, without_nan


def network(validation, test=0.5, **more):
    return {"accuracy": test, "loss": 1.0, "validation_accuracy": validation, "validation_loss": 1.0, **more}


def result(superposed, pretrained=0.7, tickets=(0.8, 0.9), accepted=(True, True)):
    rows = [
        network(accuracy, test=1 - accuracy, chain=chain, cycle=0, accepted=accepted[chain], digest=str(chain))
        for chain, accuracy in enumerate(tickets)
    ]
    report = {
        "superposed": network(superposed),
        "pretrained": network(pretrained),
        "tickets": rows,
        "ensemble": network(0.9),
    }
    return assemble_result(load_config(), report, {"total": 1.0}, [])


def test_the_best_ticket_is_chosen_on_validation_and_the_mean_is_over_all():
    assembled = result(0.95)
    assert (assembled["best_ticket"]["chain"], assembled["best_ticket"]["accuracy"]) == (1, pytest.approx(0.1))
    assert assembled["mean_ticket"]["validation_accuracy"] == pytest.approx(0.85)
    assert assembled["mean_ticket"]["accuracy"] == pytest.approx(0.15)


def test_rejected_tickets_are_named_and_a_gate_that_admits_none_is_said_loudly():
    assert result(0.95, accepted=(True, False))["rejected"] == [[1, 0]]
    assert result(0.95, accepted=(True, False))["warnings"] == []
    assert "the gate admitted no ticket" in result(0.95, accepted=(False, False))["warnings"][0]


def test_the_clock_counts_every_phase():
    clock = Clock()
    clock.lap("pretrain")
    clock.lap("explore")
    seconds = clock.seconds()
    assert list(seconds) == ["pretrain", "explore", "total"]
    assert seconds["total"] >= seconds["pretrain"] + seconds["explore"] - 0.01


def test_numbers_that_json_does_not_know_become_none():
    rows = [{"loss": float("inf")}, 1.5]
    assert without_nan({"loss": float("nan"), "rows": rows}) == {"loss": None, "rows": [{"loss": None}, 1.5]}
