"""What --dry-run prints, and that it starts nothing."""

import sys

import pytest

from suptickets_ray import load_config
from suptickets_ray.cli import main
from suptickets_ray.offline.dry_run import describe_run, describe_search
from suptickets_ray.training.data import load_data
from suptickets_ray.training.validation_size import warnings_about


def described(config):
    return dict(describe_run(config, load_data(config.data)))


def test_the_budget_of_the_built_in_recipe():
    rows = described(load_config(None, ["cluster.num_workers=2"]))
    # 150 epochs, a tenth of them for cycles of 5; 500 training examples in batches of 25.
    assert rows["pretraining"] == "rigl, 135 epochs of 20 steps = 2,700 steps of 25 examples"
    assert rows["exploration"] == "4 chains x 3 cycles = 12 tickets, each of 5 epochs = 100 steps"
    assert rows["data"].startswith("digits: 500 train, ")
    assert rows["Ray"].startswith("a local Ray, or the one that RAY_ADDRESS names: 2 ranks, then up to 4 explorers")


def test_the_network_and_its_files_by_hand():
    config = load_config(None, ["model.options.widths=[16]", "method.density=0.25", "model.initialization=default"])
    rows = described(config)
    # 64 x 16 and 16 x 10 weights. Beside them biases, and BatchNorm where the network has it.
    assert "1,184 of them maskable; 296 active at density 0.25" in rows["network"]
    assert rows["files"] == "runs/digits"


def test_a_search_counts_trials_and_shared_pretrainings():
    space = "search.space={tickets.lr_high: {grid_search: [0.1, 0.2, 0.3]}}"
    (row,) = describe_search(load_config(None, [space, "search.num_seeds=2"]))
    assert row == ("search", "3 trials, 2 seeds each; 2 pretrainings, shared by the trials")


def test_a_validation_set_too_small_for_the_gate_is_a_warning_with_the_numbers():
    config = load_config(None, ["superposition.gate_tolerance=0.001"])
    (warning,) = warnings_about(config, load_data(config.data))
    assert "one of the 297 validation examples is 0.34% of the accuracy" in warning
    ungated = load_config(None, ["superposition.gate_tolerance=none"])
    assert warnings_about(ungated, load_data(ungated.data)) == []


def test_the_command_prints_the_resolved_recipe_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--dry-run", "train.epochs=100"]) == 0
    printed = capsys.readouterr().out
    assert "epochs: 100" in printed
    assert "Nothing was started" in printed
    assert list(tmp_path.iterdir()) == []
    assert main(["tune", "--dry-run"]) == 0
    assert "pretrainings, shared by the trials" in capsys.readouterr().out
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.parametrize("other", [["--submit", "http://127.0.0.1:1"], ["--log-format", "json"], ["--from-flags", "x"]])
def test_options_that_do_nothing_beside_it_are_refused(other, capsys):
    assert main(["train", "--dry-run", *other]) == 2
    assert f"{other[0]} has no effect with --dry-run" in " ".join(capsys.readouterr().err.split())
