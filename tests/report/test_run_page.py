"""A run's page, from made-up results and from a run's folder made without Ray; and what the command writes."""

import json
import math
import shutil
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import escape

from suptickets_ray.recipes.recorded_run import RecordedRun
from suptickets_ray.report import load as report_runs
from suptickets_ray.report.analysis import Curve, Findings
from suptickets_ray.report.load import analyze_run, write_report, write_run_report
from suptickets_ray.report.rendering import render
from suptickets_ray.report.run_page import render_report
from suptickets_ray.superposition.assessment import assess
from suptickets_ray.training.data import load_data


def network(accuracy, validation_accuracy=None, **more):
    return {"accuracy": accuracy, "validation_accuracy": validation_accuracy or accuracy, **more}


def result_of(superposed, pretrained=0.8, best=0.83, accepted=True, **more):
    return {
        "name": "a",
        "superposed": {"density": 0.1, "digest": "abc", **superposed},
        "pretrained": network(pretrained, density=0.1),
        "mean_ticket": network(0.82),
        "best_ticket": network(best, density=0.1),
        "unpruned_mean": network(0.84, density=0.2),
        "ensemble": network(0.86),
        "tickets": [network(0.83, density=0.1, chain=0, cycle=0, accepted=accepted)],
        "warnings": [],
        "seconds": {"total": 3.0},
        "versions": {"torch": "2.9"},
        **more,
    }


def start(began, ended):
    return {"began": began, "ended": ended}


def cycle(chain, process, began, ended, start=0):
    where = {"chain": chain, "cycle": 0, "node": "abcdef99", "process": process}
    return {"kind": "cycle", **where, "began": began, "ended": ended, "start": start}


def test_the_page_opens_with_the_assessment():
    result = result_of(network(0.85))
    said = assess(result)
    assert f'<p class="assessment {said.outcome}">{escape(said.sentence)}' in render_report(result, "")


@pytest.mark.parametrize(("num_diverged", "cell"), [(0, "2 nets"), (1, "1 net"), (2, "pretraining")])
def test_the_page_says_how_many_networks_the_ensemble_has(num_diverged, cell):
    result = result_of(network(0.85), num_diverged=num_diverged)
    result["tickets"] *= 2
    assert f"<td>{cell}</td>" in render_report(result, "")


# The page


def test_the_page_of_a_run_answers_every_question(run):
    write_run_report(str(run))
    page = (run / "report.html").read_text()
    result = json.loads((run / "result.json").read_text())
    for words in (
        "Superposing ",
        "Overlap of the masks",
        "Density of every layer",
        "pretraining to sup-ticket",
        "0.0 to 0.1",
        "0.0 to 1.0",
        "Timeline of pretraining",
        "explorer 2 (2cab9f:101)",
        "The run was restarted once",
        f"suptickets train {run}/config.yaml name=again",
        result["superposed"]["digest"],
        result["config_digest"],
        "widths:",
    ):
        assert words in page, words
    assert 'class="note"' not in page
    assert "http" not in page.replace(str(run), "")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a busy machine the lines would reach their time limit."""
    monkeypatch.setattr(report_runs, "_MIN_LINE_SECONDS", 600.0)


def test_the_same_run_gives_the_same_page(run):
    write_run_report(str(run))
    first = (run / "report.html").read_bytes()
    write_run_report(str(run))
    assert (run / "report.html").read_bytes() == first


def test_a_result_that_is_not_stored_yet_is_shown(run):
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    write_run_report(str(run), result=result)
    assert "Did superposing pay?" in (run / "report.html").read_text()


def test_data_at_hand_is_not_loaded_again(run, monkeypatch):
    splits = load_data(RecordedRun(str(run)).config.data)
    monkeypatch.setattr(report_runs, "load_recorded", lambda config, store: pytest.fail("loaded"))
    write_run_report(str(run), splits)
    assert 'class="note"' not in (run / "report.html").read_text()


def test_data_that_is_out_of_reach_costs_the_page_its_lines_only(run, monkeypatch):
    def fail(config, store):
        raise ValueError("data.root must hold the files <here>.")

    monkeypatch.setattr(report_runs, "load_recorded", fail)
    write_run_report(str(run))
    page = (run / "report.html").read_text()
    assert "This part could not be computed: data.root must hold the files &lt;here&gt;." in page
    assert "Overlap of the masks" in page


def test_lines_that_would_keep_the_run_waiting_are_left_out_with_a_word(run):
    findings = analyze_run(RecordedRun(str(run)), None, lambda: True)
    assert findings.curves == []
    assert "0 of 3 lines are drawn, because their time limit" in findings.curve_notes[0]


def test_a_damaged_ticket_is_left_out_of_the_comparison_by_name(run):
    path = run / "tickets/chain-001/cycle-000.arrow"
    path.write_bytes(path.read_bytes()[:-9])
    findings = analyze_run(RecordedRun(str(run)), None)
    assert findings.networks == ["pretraining", "0.0", "0.1", "1.1", "sup-ticket"]
    assert findings.difference_notes[0].startswith("1.0 is not compared: tickets/chain-001/cycle-000.arrow")


def test_of_many_tickets_the_page_says_how_many_are_compared(run, monkeypatch):
    monkeypatch.setattr(report_runs, "MAX_TICKETS", 2)
    write_run_report(str(run))
    assert "2 evenly spaced tickets of 4 are compared" in (run / "report.html").read_text()


def test_a_figure_that_fails_costs_the_page_its_section_only(run, monkeypatch):
    monkeypatch.setattr("suptickets_ray.report.run_page.heat_map", lambda *given: 1 / 0)
    write_run_report(str(run))
    page = (run / "report.html").read_text()
    assert "This section could not be rendered: ZeroDivisionError" in page
    assert "Timeline of pretraining" in page


def test_a_run_without_a_timeline_says_so(run):
    (run / "timeline.json").unlink()
    write_run_report(str(run))
    assert "The run has no timeline.json" in (run / "report.html").read_text()


@pytest.mark.parametrize("content", ['{"starts": 3', "[]", '{"starts": [{}], "spans": [{"kind": "cycle"}]}'])
def test_a_damaged_timeline_is_a_note(run, content):
    (run / "timeline.json").write_text(content)
    write_run_report(str(run))
    assert "timeline.json is damaged" in (run / "report.html").read_text()


def test_the_timeline_of_another_recipe_is_not_shown(run):
    path = run / "timeline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config_digest": "0"}))
    write_run_report(str(run))
    assert "timeline.json is damaged or of another recipe" in (run / "report.html").read_text()


def test_a_timeline_without_spans_draws_nothing(run):
    path = run / "timeline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "starts": [{"began": 1.0, "ended": 2.0}], "spans": []}))
    write_run_report(str(run))
    assert "All starts together took 1.0 s" in (run / "report.html").read_text()


def test_a_diverged_network_is_no_basin():
    findings = Findings(curves=[Curve("a", "b", [0.0, 1.0], [1.0, math.nan], [0.8, 0.1])])
    page = render_report(result_of(network(0.85)), "", findings)
    assert "At least one of these networks has diverged" in page
    assert "<td>1.0000</td><td>-</td><td>-</td>" in page
    assert "nan" not in page


@pytest.mark.slow
def test_a_page_of_a_large_network_and_a_long_run_stays_small():
    names = ["pretraining", *(f"{chain}.0" for chain in range(16)), "sup-ticket"]
    layers = {f"stage.{index}.block.convolution.weight": 0.1 for index in range(160)}
    findings = Findings(names, 16, [[0.5] * 18] * 18, 0.1, [layers] * 18)
    spans = [cycle(chain, chain % 40, float(chain), chain + 9.0) for chain in range(5_000)]
    page = render_report(result_of(network(0.85)), "", findings, {"starts": [start(0.0, 5e3)], "spans": spans})
    assert len(page.encode()) < 3e6
    # Of cycles that last equally long as many are drawn as there is room for, once for a desk and once for a phone.
    assert page.count("#8888") > 2 * 2_900
    assert "2000 bars are not shown" in page


def test_many_tickets_are_listed_on_demand():
    result = result_of(network(0.85))
    result["tickets"] *= 21
    assert "<details><summary>All 21 tickets</summary>" in render_report(result, "")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/runs/a b", "&#39;/runs/a b/config.yaml&#39;"),
        ("s3://bucket/runs/a", "s3://bucket/runs/a/config.yaml"),
        ("s3://b/a?endpoint_override=h:1", "&#39;s3://b/a/config.yaml?endpoint_override=h:1&#39;"),
        ("", "config.yaml"),
    ],
)
def test_the_command_that_reproduces_a_run_names_its_recipe_wherever_it_lies(path, source):
    page = render_report(result_of(network(0.85)), "", path=path)
    assert f"<code>suptickets train {source} name=again</code>" in page


# The command


def test_one_run_gets_its_report_anew(run):
    assert write_report([str(run)]) == f"{run}/report.html"
    assert "Overlap of the masks" in (run / "report.html").read_text()


def test_an_output_leaves_the_run_as_it_is(run, tmp_path):
    assert write_report([str(run)], str(tmp_path / "page.html")) == str(tmp_path / "page.html")
    assert "Overlap of the masks" in (tmp_path / "page.html").read_text()
    assert not (run / "report.html").exists()


def test_an_unfinished_run_shows_what_there_is(run):
    (run / "result.json").unlink()
    (run / "superposed.arrow").unlink()
    page = Path(write_report([str(run)])).read_text()
    assert "This run is not finished" in page
    assert "Overlap of the masks" in page
    assert "<h1>a</h1>" in page


def test_what_is_no_run_is_refused_in_a_sentence(run, tmp_path):
    def refused(words, paths, *output):
        with pytest.raises(ValueError, match=words):
            write_report(paths, *output)

    refused("must be given the folder of a run", [])
    refused("it has no config.yaml", [str(tmp_path / "nowhere")])
    refused("--output must be a file in an existing folder", [str(run)], str(tmp_path / "no/such.html"))
    refused("--output must be a file", [str(run)], str(tmp_path))
    (run / "result.json").write_text('{"trials": []}')
    refused("it contains a search", [str(run)])
    (run / "result.json").write_text('{"state": "complete"}')
    refused("result.json must be the result of a run", [str(run)])
    (run / "result.json").unlink()
    (run / "pretrained.pt").unlink()
    shutil.rmtree(run / "tickets")
    refused("it has no network yet", [str(run)])


def test_every_value_of_a_page_is_escaped():
    evil = "<script>a&\"'</script>"
    result = result_of(
        network(0.85), name=evil, warnings=[evil], versions={evil: evil}, seconds={evil: 1.0}, config_digest=evil
    )
    findings = Findings(
        [evil, "0.0"], 1, [[1.0, 0.5]] * 2, 0.1, [{evil: 0.1}] * 2, difference_notes=[evil], curve_notes=[evil]
    )
    page = render_report(result, evil, findings, None, path=evil)
    assert page.count("&lt;script&gt;") > 10
    assert "<script" not in page


def test_a_value_that_a_template_misses_is_an_error():
    with pytest.raises(UndefinedError, match="recipe"):
        render("run/reproduction.html", source="a", result=None)
