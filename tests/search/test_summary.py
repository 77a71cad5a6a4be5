import io
from math import nan

import pyarrow.parquet as pq
import pytest

from suptickets_ray.search.summary import budget_warning, noise_warning, ranked, to_parquet, trial_row


def row(number, *accuracies, state="complete", **values):
    seeds = [{"validation_accuracy": accuracy, "validation_loss": 1.0, "seconds": 2.0} for accuracy in accuracies]
    return trial_row(number, values, seeds, "validation_accuracy", state)


def test_mean_and_standard_error_are_over_seeds():
    found = row(0, 0.8, 0.9, 1.0)
    assert found["validation_accuracy"] == pytest.approx(0.9)
    assert found["standard_error"] == pytest.approx(0.1 / 3**0.5)
    assert (found["seeds"], found["seconds"]) == (3, 6.0)
    assert row(0, 0.8)["standard_error"] is None


def test_a_diverged_seed_makes_the_mean_of_all_no_number():
    seeds = [{"validation_accuracy": 0.5, "validation_loss": 1.0}, {"validation_accuracy": 0.1, "validation_loss": nan}]
    found = trial_row(0, {}, seeds, "validation_loss", "complete")
    assert (found["validation_accuracy"], found["validation_loss"], found["standard_error"]) == (0.3, None, None)
    assert found["seeds"] == 2
    better = trial_row(1, {}, [{"validation_accuracy": 0.1, "validation_loss": 9.0}], "validation_loss", "complete")
    assert ranked([found, better], "validation_loss", "min") == [better]


def test_stopped_trials_never_win_and_of_equals_the_earlier_does():
    rows = [row(0, 0.7), row(1, 0.9, state="stopped"), row(2, 0.8), row(3, 0.8)]
    assert [found["trial"] for found in ranked(rows, "validation_accuracy", "max")] == [2, 3, 0]
    assert [found["trial"] for found in ranked(rows, "validation_accuracy", "min")] == [0, 2, 3]


def test_a_lead_within_noise_is_said_and_a_clear_one_is_not():
    assert "may be noise. To find out, set search.num_seeds=5" in noise_warning(
        [row(0, 0.9), row(1, 0.8)], "validation_accuracy"
    )
    close = noise_warning([row(0, 0.9, 0.8, 0.85), row(1, 0.85, 0.75, 0.83)], "validation_accuracy")
    assert "leads the second by 0.0400 in validation_accuracy, which is within noise" in close
    assert noise_warning([row(0, 0.9, 0.91, 0.9), row(1, 0.7, 0.71, 0.7)], "validation_accuracy") is None
    assert noise_warning([row(0, 0.9)], "validation_accuracy") is None


def test_lengths_that_get_other_budgets_are_said():
    assert budget_warning({2: 24, 4: 24, 8: 24, 12: 24}) is None
    assert "the total epochs of the cycles are 2: 14, 12: 12." in budget_warning({12: 12, 2: 14})


def test_trials_become_a_table_with_a_column_for_each_key():
    rows = [row(0, 0.7, **{"train.lr": 0.1, "model.options.widths": [8]}), row(1, 0.8, **{"train.lr": 0.2})]
    table = pq.read_table(io.BytesIO(to_parquet(rows))).to_pydict()
    assert table["train.lr"] == [0.1, 0.2]
    assert table["model.options.widths"] == ["[8]", "null"]
    assert table["validation_accuracy"] == [0.7, 0.8]
    assert table["state"] == ["complete", "complete"]
