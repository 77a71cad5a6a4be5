from suptickets_ray.report.search_page import render_search, search_table


def row(number, value, accuracy, loss, state="complete"):
    scores = {"validation_accuracy": accuracy, "validation_loss": loss, "standard_error": None}
    costs = {"cycles_trained": 1, "seconds": 2.0, "digest": "d"}
    return {"trial": number, "state": state, "values": {"train.lr": value}, "error": None, **scores, **costs}


def test_a_trial_that_has_diverged_is_shown_and_drawn_nowhere():
    trials = [row(0, 0.1, 0.5, 1.0), row(1, 0.2, 0.6, 0.9), row(2, 9.0, 0.1, None), row(3, 8.0, None, None, "failed")]
    result = {
        "name": "search",
        "metric": "validation_loss",
        "mode": "min",
        "trials": trials,
        "best": {"trial": 1, "values": {"train.lr": 0.2}, "validation_accuracy": 0.6, "accuracy": 0.5, "digest": "d"},
        "warnings": ["a <sentence>"],
        "pretrainings": 1,
        "cycles_trained": 4,
        "seconds": {"total": 3.0},
    }
    page = render_search(result)
    assert "Best validation loss by train.lr" in page
    assert "a &lt;sentence&gt;" in page
    assert "(failed)" in page
    assert search_table(result).row_count == 4
    assert [
        row["trial"] for row in sorted(trials, key=lambda row: page.index(f"<td>{row['values']['train.lr']}<"))
    ] == [
        1,
        0,
        2,
        3,
    ]
