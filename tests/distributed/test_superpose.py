"""`suptickets superpose` on the files of a finished run: nothing is trained, and no Ray is needed."""

import json
import re
import shutil
from pathlib import Path

import pytest

from suptickets_ray import Ticket, load_config
from suptickets_ray.cli import main
from suptickets_ray.offline import resuperpose as superpose_module
from suptickets_ray.offline.resuperpose import (
    SWEPT_FACTORS,
    evaluate_runs,
    open_runs,
    superpose_runs,
    superposition_recipe,
    sweep,
)
from suptickets_ray.recipes.load import config_digest, to_yaml
from suptickets_ray.search.keys import exploration_key, pretraining_key
from suptickets_ray.sparse.masks import num_active

pytestmark = pytest.mark.ray
TARGET = int(0.1 * 25_856 + 1e-9)


@pytest.fixture
def copied_run(finished_run, tmp_path):
    run = tmp_path / "copied"
    shutil.copytree(finished_run.path, run)
    return run


def test_the_runs_own_rule_gives_the_runs_own_result(finished_run):
    runs = open_runs([finished_run.path])
    merger, reports = superpose_runs(runs)
    result = evaluate_runs(runs, merger, reports)
    recorded = json.loads((Path(finished_run.path) / "result.json").read_text())
    for key in ("superposed", "pretrained", "tickets", "unpruned_mean", "ensemble", "mean_ticket", "best_ticket"):
        assert result[key] == recorded[key], key


def test_the_command_merges_under_another_rule_and_keeps_the_ticket(finished_run, tmp_path, capsys):
    file = tmp_path / "cima.arrow"
    assert main(["superpose", finished_run.path, "method=cima", "cima_factor=0.2", "--output", str(file)]) == 0
    ticket = Ticket.load(file)
    assert num_active(ticket.masks) == TARGET
    assert ticket.provenance["superposition"]["method"] == "cima"
    assert ticket.digest in capsys.readouterr().out
    assert ticket.digest != json.loads((Path(finished_run.path) / "result.json").read_text())["superposed"]["digest"]


def test_a_sweep_compares_all_rules_on_validation_and_tests_the_best_alone(finished_run, capsys):
    rows, judged = sweep(open_runs([finished_run.path]))
    assert [(row["method"], row["cima_factor"]) for row in rows] == [
        ("cia", None),
        ("caa", None),
        *(("cima", factor) for factor in SWEPT_FACTORS),
        ("greedy", None),
    ]
    tested = [row for row in rows if "accuracy" in row]
    assert tested == [max(rows, key=lambda row: row["validation_accuracy"])]
    assert judged["assessment"]["sentence"]
    assert main(["superpose", finished_run.path, "--sweep"]) == 0
    assert len(re.findall(r"of 6", capsys.readouterr().out)) == 8


def test_greedy_takes_the_best_first_and_keeps_only_what_loses_nothing(finished_run):
    merger, reports = superpose_runs(open_runs([finished_run.path], ["method=greedy"]))
    recorded = json.loads((Path(finished_run.path) / "result.json").read_text())
    own = {(row["chain"], row["cycle"]): row["validation_accuracy"] for row in recorded["tickets"]}
    order = [own[report["chain"], report["cycle"]] for report in reports]
    assert order == sorted(order, reverse=True)
    best = recorded["pretrained"]["validation_accuracy"]
    for report in reports:
        assert report["accepted"] == (report["validation_accuracy"] >= best - 1e-9)
        best = max(best, report["validation_accuracy"])
    assert num_active(merger.superposed.masks) == TARGET


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=cima", "cima_factor=0.2"],
        ["method=caa"],
        ["method=greedy"],
        ["prune_at=every_ticket", "prune_scope=layer"],
        ["batchnorm=average"],
        ["include_pretrained=false"],
        ["gate_tolerance=none"],
    ],
)
def test_every_rule_ends_at_the_density_and_matters(finished_run, overrides):
    merger, reports = superpose_runs(open_runs([finished_run.path], overrides))
    assert num_active(merger.superposed.masks) == TARGET
    recorded = json.loads((Path(finished_run.path) / "result.json").read_text())
    if overrides == ["gate_tolerance=none"]:
        assert all(report["accepted"] for report in reports)
    else:
        assert merger.superposed.digest != recorded["superposed"]["digest"]


@pytest.mark.parametrize("overrides", [["method=greedy"], ["prune_at=every_ticket"], ["gate_tolerance=0.01"], []])
def test_a_run_that_merged_in_shares_is_merged_anew_under_any_rule(overrides):
    shared = ["cluster.num_merge_shards=2", "superposition.prune_at=end", "superposition.gate_tolerance=none"]
    run = load_config(None, shared)
    with pytest.raises(ValueError, match="num_merge_shards"):
        load_config(None, [*shared, "superposition.prune_at=every_ticket"])
    assert superposition_recipe(run, overrides).cluster.num_merge_shards == 1
    assert config_digest(superposition_recipe(run, [])) == config_digest(run)


def test_several_runs_of_one_model_are_merged_one_after_another(finished_run, copied_run):
    runs = open_runs([finished_run.path, str(copied_run)], ["gate_tolerance=none"])
    merger, reports = superpose_runs(runs)
    assert [(report["chain"], report["cycle"]) for report in reports[6:8]] == [(3, 0), (4, 0)]
    assert merger.superposed.provenance["num_tickets"] == 13
    assert num_active(merger.superposed.masks) == TARGET


def test_the_mean_that_is_not_pruned_is_denser_than_the_sup_ticket(finished_run):
    recorded = json.loads((Path(finished_run.path) / "result.json").read_text())
    assert 0.1 < recorded["unpruned_mean"]["density"] < 0.7


def test_what_cannot_be_merged_is_one_sentence_with_exit_code_2(
    finished_run, copied_run, tmp_path, capsys, monkeypatch
):
    def refused(*arguments):
        assert main(["superpose", *arguments]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "has no config.yaml" in refused(str(tmp_path / "nowhere"))
    assert "must be given the folder of a run" in refused("method=cia")
    assert "unknown superposition method 'cai'; did you mean 'cia'" in refused(finished_run.path, "method=cai")
    assert "must be a setting of superposition" in refused(finished_run.path, "train.lr=1")
    assert "--output has no effect with --sweep" in refused(finished_run.path, "--sweep", "--output", "a")
    other = load_config(copied_run / "config.yaml", ["data.label_noise=0.3"])
    (copied_run / "config.yaml").write_text(to_yaml(other))
    assert "--output must be in an existing folder" in refused(finished_run.path, "--output", "no/such/a.arrow")
    assert "cima_factor=0.3 has no effect with --sweep" in refused(finished_run.path, "--sweep", "cima_factor=0.3")
    assert "runs must be distinct" in refused(finished_run.path, finished_run.path + "/")
    own = load_config(f"{finished_run.path}/config.yaml")
    with monkeypatch.context() as as_if_made_on_it:
        for key in (pretraining_key, exploration_key):
            as_if_made_on_it.setattr(superpose_module, key.__name__, lambda _, key=key: key(own))
        assert "has another split of the data than" in refused(finished_run.path, str(copied_run))
    (copied_run / "config.yaml").write_text(to_yaml(own))
    (copied_run / "data.sha256").write_text("another")
    assert "the data must be those that the work in" in refused(str(copied_run))
    (copied_run / "data.sha256").unlink()
    shutil.rmtree(copied_run / "tickets")
    assert "must contain tickets; it has none yet" in refused(str(copied_run))


def test_runs_that_validate_on_different_examples_are_not_merged_together(tmp_path):
    from suptickets_ray.offline.resuperpose import StoredRun, _shared_properties

    def agreed(*overrides):
        config = load_config(None, ["data.name=synthetic", "model.initialization=default", *overrides])
        return _shared_properties(StoredRun("", config, Ticket({}, {}, {}), None, "d", []))

    assert agreed("data.validation_share=0.5") != agreed("data.validation_share=0.1")
    assert agreed("tickets.num_chains=3") == agreed()


def test_settings_may_follow_options_and_a_folder_may_hold_an_equals_sign(copied_run, tmp_path, capsys):
    odd = copied_run.rename(copied_run.with_name("lr=0.1"))
    assert main(["superpose", str(odd), "--output", str(tmp_path / "a.arrow"), "prune_at=end", "method=caa"]) == 0
    assert Ticket.load(tmp_path / "a.arrow").provenance["superposition"]["method"] == "caa"


def test_a_change_of_the_rule_from_and_to_greedy_takes_the_gate_along(finished_run, copied_run):
    greedy = load_config(copied_run / "config.yaml", ["superposition.method=greedy"])
    assert greedy.superposition.gate_tolerance == 0.0
    (copied_run / "config.yaml").write_text(to_yaml(greedy))
    assert open_runs([str(copied_run)], ["method=cia"])[0].config.superposition.gate_tolerance == 0.005
    kept = load_config(finished_run.path + "/config.yaml", ["superposition.gate_tolerance=none"])
    (copied_run / "config.yaml").write_text(to_yaml(kept))
    assert open_runs([str(copied_run)], ["method=greedy"])[0].config.superposition.gate_tolerance == 0.0


def test_damage_is_named_with_its_file(copied_run, capsys):
    path = copied_run / "tickets/chain-001/cycle-000.arrow"
    path.write_bytes(path.read_bytes()[:-9])
    assert main(["superpose", str(copied_run)]) == 2
    assert "copied/tickets/chain-001/cycle-000.arrow" in "".join(capsys.readouterr().err.split())
    state = bytearray((copied_run / "pretrained.pt").read_bytes())
    state[len(state) // 2] ^= 1
    (copied_run / "pretrained.pt").write_bytes(bytes(state))
    assert main(["superpose", str(copied_run)]) == 2
    assert "copied/pretrained.pt: the stored state must be whole" in " ".join(capsys.readouterr().err.split())


def test_files_of_another_run_are_refused_by_name(copied_run, tmp_path, capsys):
    path = copied_run / "tickets/chain-001/cycle-001.arrow"
    ticket = Ticket.load(path)
    Ticket.of_parts(ticket.parts, {**ticket.provenance, "exploration": "of another run"}).save(path)
    assert main(["superpose", str(copied_run)]) == 2
    said = "".join(capsys.readouterr().err.split())
    assert "tickets/chain-001/cycle-001.arrowmustbeaticketofthefolder" in said
    other = to_yaml(load_config(copied_run / "config.yaml", ["train.lr=0.05"]))
    (copied_run / "config.yaml").write_text(other)
    assert main(["superpose", str(copied_run)]) == 2
    assert "pretrained.pt must match the folder's config.yaml" in " ".join(capsys.readouterr().err.split())
