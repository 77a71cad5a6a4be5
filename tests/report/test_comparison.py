"""Several runs side by side, with errors over seeds."""

import math
import shutil

import pytest

from suptickets_ray import load_config
from suptickets_ray.report.comparison import ComparedRun, group_names, group_runs, mean_and_error, render_comparison
from suptickets_ray.report.load import write_report


def run_of(seed, superposed, *overrides, pretrained=0.8, best=0.82):
    """A finished run of the digits recipe with made-up accuracies."""
    config = load_config(None, [f"seed={seed}", f"name=run-{seed}", *overrides])
    networks = {"pretrained": pretrained, "mean_ticket": 0.81, "best_ticket": best, "unpruned_mean": 0.83}
    result = {key: {"accuracy": value} for key, value in {**networks, "ensemble": 0.86}.items()}
    result["superposed"] = {"accuracy": superposed, "digest": f"{seed}{superposed}{overrides}"}
    result["seconds"] = {"total": 10.0}
    return ComparedRun(f"/runs/{seed}", config, result, 0.5)


def test_the_error_is_the_standard_error_of_the_mean():
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert (mean, error) == (2.0, pytest.approx(1 / math.sqrt(3)))


def test_a_single_run_has_no_error():
    assert mean_and_error([1.0]) == (1.0, None)


def test_runs_that_differ_in_seed_name_and_place_alone_are_one_group():
    other = run_of(1, 0.9, "tickets.num_chains=3")
    groups = group_runs([run_of(0, 0.84), other, run_of(1, 0.86, "storage=/elsewhere", "cluster.num_explorers=2")])
    assert [[run.config.seed for run in group] for group in groups] == [[0, 1], [1]]


def test_the_same_result_does_not_count_twice():
    with pytest.raises(ValueError, match="the same recipe and the same result"):
        group_runs([run_of(0, 0.84), run_of(0, 0.84)])


def test_a_group_is_named_by_what_tells_it_from_the_others():
    groups = group_runs([run_of(0, 0.84), run_of(0, 0.9, "tickets.num_chains=3", "train.lr=0.2")])
    assert group_names(groups) == ["num_chains=4, lr=0.1", "num_chains=3, lr=0.2"]


def test_a_group_alone_has_the_name_of_its_first_run():
    assert group_names([[run_of(0, 0.84), run_of(1, 0.84)]]) == ["run-0"]


def test_the_page_gives_mean_and_error_of_accuracies_and_of_gains_within_runs():
    page = render_comparison([run_of(0, 0.84, pretrained=0.80), run_of(1, 0.86, pretrained=0.84)])
    assert "<td>85.00 ± 1.00</td>" in page  # the sup-ticket
    assert "<td>+3.00 ± 1.00</td>" in page  # over pretraining: 4 points and 2 points


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.84, 0.85), "over 2 seeds the sup-ticket gains +4.50 ± 0.50 percentage points"),
        # Two seeds leave it to 12.7 standard errors: Student's t with one degree of freedom.
        ((0.84, 0.85), "superposing changed nothing beyond chance;"),
        ((0.84, 0.85, 0.845), "superposing paid;"),
        ((0.82, 0.83, 0.825), "from the best single ticket it differs by no more than chance;"),
        ((0.81, 0.811, 0.812), "superposing beat pretraining, but not the best single ticket;"),
        ((0.76, 0.75, 0.755), "superposing did not pay;"),
        ((0.82, 0.79, 0.80), "superposing changed nothing beyond chance;"),
    ],
)
def test_the_verdict_on_a_group_weighs_the_gain_against_its_error(accuracies, words):
    assert words in render_comparison([run_of(seed, found) for seed, found in enumerate(accuracies)])


def test_the_verdict_on_one_run_says_that_chance_is_not_known():
    page = render_comparison([run_of(0, 0.84), run_of(0, 0.84, "tickets.num_chains=3")])
    assert page.count("in one run, whose variation over seeds is unknown,") == 2


def test_the_verdict_on_one_run_weighs_the_choice_of_its_test_set():
    runs = [run_of(0, 0.84), run_of(0, 0.84, "tickets.num_chains=3")]
    runs[0].result["pretrained"]["gain_error"] = 0.03
    page = render_comparison(runs)
    assert "chains=4: superposing changed nothing beyond chance; in one run" in page
    assert "num_chains=3: superposing paid; in one run" in page


def test_stored_runs_are_compared_on_one_page(stored_runs, tmp_path):
    output = tmp_path / "all.html"
    assert write_report([str(stored_runs / name) for name in "abc"], str(output)) == str(output)
    page = output.read_text()
    for words in ("Comparison of 3 runs", "chains=2: ", "chains=3: ", "Gain of the sup-ticket", "±"):
        assert words in page
    assert 'class="note"' not in page


def test_without_an_output_the_page_lies_in_the_working_folder(stored_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_report([str(stored_runs / "a"), str(stored_runs / "b")]) == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").is_file()


def test_damaged_masks_cost_the_page_their_overlap_only(stored_runs, run, tmp_path):
    for path in run.rglob("cycle-*.arrow"):
        path.write_bytes(b"")
    write_report([str(run), str(stored_runs / "b")], str(tmp_path / "all.html"))
    assert "Comparison of 2 runs" in (tmp_path / "all.html").read_text()


def test_runs_that_cannot_be_compared_are_refused_in_a_sentence(stored_runs, run, tmp_path):
    with pytest.raises(ValueError, match="runs must be distinct; got .* twice"):
        write_report([str(run), f"{run}/"], str(tmp_path / "all.html"))
    with pytest.raises(ValueError, match="the same recipe and the same result"):
        write_report([str(run), str(stored_runs / "a")], str(tmp_path / "all.html"))
    (run / "result.json").unlink()
    with pytest.raises(ValueError, match="runs must be finished to be compared"):
        write_report([str(run), str(stored_runs / "b")], str(tmp_path / "all.html"))
    shutil.rmtree(run)
