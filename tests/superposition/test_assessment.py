"""The assessment of made-up accuracies."""

import pytest
from scipy import stats

from suptickets_ray.superposition.assessment import Gain, _mcnemar, assess, conclusion, summarize_tickets


def network(accuracy, **more):
    return {"accuracy": accuracy, "loss": 1.0, "validation_accuracy": accuracy, "validation_loss": 1.0, **more}


def result_of(superposed, pretrained=0.8, best=0.83, accepted=True, **more):
    ticket = network(best, density=0.1, chain=0, cycle=0, accepted=accepted)
    return {
        "superposed": network(superposed),
        "pretrained": network(pretrained),
        "mean_ticket": network(0.82),
        "best_ticket": ticket,
        "ensemble": network(0.86),
        "tickets": [ticket],
        **more,
    }


@pytest.mark.parametrize(
    ("superposed", "more", "words", "outcome"),
    [
        (0.85, {}, "Superposing paid: the sup-ticket's test accuracy is 85.00%, 5.00 points above", "gain"),
        (0.82, {}, "Superposing beat pretraining, but not the best single ticket", "open"),
        (0.79, {}, "Superposing did not pay: the sup-ticket's test accuracy is 79.00%, 1.00 points below", "loss"),
        (0.8, {"accepted": False}, "the gate admitted no ticket", "open"),
    ],
)
def test_the_sentence_says_what_the_sup_ticket_beat(superposed, more, words, outcome):
    found = assess(result_of(superposed, **more))
    assert words in found.sentence
    assert found.outcome == outcome


def test_the_sentence_compares_with_mean_best_and_ensemble():
    said = assess(result_of(0.85)).sentence
    for words in (
        "3.00 points above the mean ticket",
        "2.00 points above the best ticket",
        "1.00 points below the ens",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("error", "best_error", "words", "outcome"),
    [
        (0.02, 0.001, "superposing paid", "gain"),
        (0.03, 0.001, "superposing changed nothing beyond chance", "open"),
        (0.02, 0.02, "from the best single ticket it differs by no more than chance", "gain"),
    ],
)
def test_a_gain_is_weighed_against_its_error(error, best_error, words, outcome):
    said, found = conclusion(Gain(0.05, error), Gain(0.02, best_error))
    assert words in said
    assert found == outcome


@pytest.mark.parametrize(
    ("alone", "is_chance"),
    [((5, 0), True), ((6, 0), False), ((15, 5), False), ((14, 6), True), ((0, 0), True), ((600, 400), False)],
)
def test_a_gain_of_one_run_is_chance_unless_mcnemars_exact_test_says_otherwise(alone, is_chance):
    # Two-sided p: 0.0625, 0.03125, 0.0414, 0.1153, 1 and below 1e-9.
    assert Gain(0.01, 0.001, only_one_right=alone).may_be_chance == is_chance


@pytest.mark.parametrize(("num_runs", "is_chance"), [(1, False), (2, True), (3, True), (8, False)])
def test_over_few_runs_students_t_asks_for_more(num_runs, is_chance):
    # 3 standard errors; 97.5 % of Student's t lie below 12.7, 4.30 and 2.36 with 1, 2 and 7 degrees of freedom.
    assert Gain(0.03, 0.01, num_runs).may_be_chance == is_chance


def test_a_loss_within_chance_is_no_warning():
    losing = result_of(0.79)
    losing["pretrained"]["only_one_right"] = losing["best_ticket"]["only_one_right"] = [4, 6]
    assert summarize_tickets(losing)["warnings"] == []


def test_a_loss_beyond_chance_is_a_warning_with_its_numbers():
    losing = result_of(0.79)
    losing["pretrained"] |= {"only_one_right": [4, 20], "gain_error": 0.004}
    losing["best_ticket"]["only_one_right"] = [4, 6]
    (warning,) = summarize_tickets(losing)["warnings"]
    assert (
        warning == "superposing did not pay: on test the sup-ticket is 1.00 ± 0.40 points below the pretrained network."
    )


@pytest.mark.parametrize(
    ("num_diverged", "words"),
    [
        (0, "which computes with 2 networks."),
        (1, "the ensemble, which is one ticket."),
        (2, "which is the pretrained network, because every ticket has diverged."),
    ],
)
def test_diverged_tickets_are_no_members_of_the_ensemble(num_diverged, words):
    result = result_of(0.85, num_diverged=num_diverged)
    result["tickets"] *= 2
    assert words in assess(result).sentence


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (3, 3), (2, 9), (9, 2), (400, 600), (499, 501), (480, 560)]
)
def test_p_values_are_those_of_scipys_tests(first, second):
    count = first + second
    if count > 1000:
        expected = 2 * stats.norm.sf(abs(first - second) / count**0.5)
    else:
        expected = stats.binomtest(first, count).pvalue if count else 1.0
    assert _mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_runs", [1, 2, 5, 30])
def test_a_mean_is_compared_with_students_t(num_runs):
    errors = stats.t(num_runs - 1).ppf(0.975) if num_runs > 1 else stats.norm.ppf(0.975)
    assert Gain(0.999 * errors, 1.0, num_runs).may_be_chance
    assert not Gain(1.001 * errors, 1.0, num_runs).may_be_chance
