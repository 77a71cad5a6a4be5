"""The evidence: its statistics, its page, and a part of it run anew."""

import importlib
import math
import re
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest

from suptickets_ray import load_config, train

FOLDER = Path(__file__).parents[1] / "experiments" / "evidence"
SHORT = ["train.epochs=30", "tickets.cycle_epochs=1", "method.update_interval_steps=5"]


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def module(name):
    return importlib.import_module(name)


def test_a_paired_difference_has_mean_error_and_an_exact_p():
    found = module("statistics_of_seeds").paired({1: 3.0, 2: 5.0, 3: 4.0, 9: 1.0}, {1: 1.0, 2: 2.0, 3: 3.0})
    assert (found.mean, found.n) == (2.0, 3)
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.p == 2 / 8  # all of one sign: as far from 0 as can be


def test_differences_around_zero_may_be_chance():
    assert module("statistics_of_seeds").permutation_p([1.0, -1.0, 2.0, -2.0]) == 1.0
    assert module("statistics_of_seeds").permutation_p([0.5] * 20) < 1e-3


def test_without_a_common_seed_there_is_no_difference():
    with pytest.raises(ValueError, match="must have a seed in common"):
        module("statistics_of_seeds").paired({1: 1.0}, {2: 1.0})


def test_the_splits_own_spread_is_what_the_seeds_do_not_explain():
    statistics = module("statistics_of_seeds")
    splits = [statistics.Difference(mean, 0.6, 3, 1.0) for mean in (4.0, 5.0, 6.0)]
    found = statistics.Spread.of(splits)
    assert (found.mean, found.deviation, found.splits) == (5.0, 1.0, 3)
    assert found.between == pytest.approx(0.8)  # 1.0 ** 2 - 0.6 ** 2
    # One more split, far off: between splits 0.64, over its own seeds 0.36, the mean's own third of 1.0.
    assert found.apart(9.0, 0.6) == pytest.approx(4.0 / (0.64 + 0.36 + 1 / 3) ** 0.5)


def test_splits_that_differ_less_than_their_seeds_have_no_spread_of_their_own():
    statistics = module("statistics_of_seeds")
    assert statistics.Spread.of([statistics.Difference(mean, 2.0, 3, 1.0) for mean in (4.0, 5.0, 6.0)]).between == 0.0


@pytest.mark.parametrize("name", ["r1", "r2", "r2_set", "r3", "conv"])
def test_settings_are_those_of_the_prototype(name):
    recipe = module("evidence").SETTINGS[name].recipe
    config = load_config(FOLDER / recipe)
    if name != "conv":
        expected = {"r1": (150, 5, 0.2, 2e-3), "r3": (240, 16, 0.0, 5e-4)}.get(name, (120, 8, 0.2, 2e-3))
        tickets, train_section = config.tickets, config.train
        found = (train_section.epochs, tickets.cycle_epochs, config.data.label_noise, train_section.weight_decay)
        assert found == expected
        assert (tickets.lr_low, tickets.lr_high, tickets.exploration_fraction) == (0.001, 0.2, 0.2)
        assert (config.method.density, config.method.distribution, config.cluster.num_workers) == (0.1, "erk", 1)
    assert config.method.name == ("set" if name == "r2_set" else "rigl")


@pytest.mark.slow
def test_the_page_is_that_of_the_committed_results():
    page = module("page")
    assert (FOLDER / "README.md").read_text() == page.render(page.read_cells(FOLDER))


def test_the_readmes_table_is_that_of_the_committed_results():
    page = module("page")
    assert page.summary(page.read_cells(FOLDER)) in (FOLDER.parents[1] / "README.md").read_text()


def test_the_readmes_sentences_hold_the_numbers_of_the_committed_results():
    page, statistics = module("page"), module("statistics_of_seeds")
    cells, readme = page.read_cells(FOLDER), (FOLDER.parents[1] / "README.md").read_text()
    for setting, first, second in [
        ("conv_hot", ("superposed", 4), ("superposed_shared_mask", 4)),
        ("conv", ("superposed", 1), ("plain", 0)),
        ("conv_hot", ("superposed", 1), ("plain", 0)),
        ("conv_hot", ("superposed", 1), ("early_stop", 0)),
        ("conv_hot", ("superposed", 4), ("early_stop", 0)),
    ]:
        found = statistics.paired(*(page.accuracies(cells, setting, *key) for key in (first, second)))
        assert f"{found.mean:+.2f} +- {found.standard_error:.2f}" in readme
    for setting in ("r1", "r1_standardised"):
        names = [setting, *(f"{setting}_split_{split}" for split in range(1, 9))]
        gains = [
            statistics.paired(page.accuracies(cells, name, "superposed", 4), page.accuracies(cells, name, "plain", 0))
            for name in names
        ]
        assert re.search(
            re.escape(f"{fmean(gain.mean for gain in gains):+.2f}")
            + r"[^+]*"
            + re.escape(f"(s.d. {stdev(gain.mean for gain in gains):.2f})"),
            readme,
        )


def test_the_committed_results_hold_every_setting_with_its_seeds():
    cells, evidence = module("page").read_cells(FOLDER), module("evidence")
    assert {"r1", "r2", "r2_set", "r3", "conv", "conv_hot", "r1_split_8", "r2_split_8"} <= set(evidence.SETTINGS)
    for name, setting in evidence.SETTINGS.items():
        for variant in setting.variants:
            for chains in setting.chains:
                if variant.most_chains is None or chains <= variant.most_chains:
                    assert len(cells[name, variant.name, chains]) == setting.seeds
        assert len(cells[name, "plain", 0]) == len(cells[name, "early_stop", 0]) == setting.seeds
    for name in evidence.CONTROLS:
        assert {variant for setting, variant, _ in cells if setting == name} >= {"superposed", "superposed_gated"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_seed_of_r1_run_again_agrees_with_the_committed_numbers_and_are_not_run_twice(ray_address, tmp_path, capsys):
    run, page, statistics = module("run"), module("page"), module("statistics_of_seeds")
    run.main(["--seeds", "1", "--only", "r1", "--output", str(tmp_path)])
    again, committed = page.read_cells(tmp_path), page.read_cells(FOLDER)
    assert {key for key in committed if key[0] == "r1"} == set(again)
    for key, rows in again.items():
        # Another processor rounds otherwise, and after 150 epochs that is another network: a seed of its own.
        known = list(page.accuracies(committed, *key).values())
        mean, error = statistics.mean_and_error(known)
        deviation = error * len(known) ** 0.5
        found = fmean(page.accuracies(again, *key).values())
        assert found == pytest.approx(mean, abs=5 * deviation * (1 / len(rows) + 1 / len(known)) ** 0.5), key
    plain = page.accuracies(again, "r1", "plain", 0)
    for chains in (1, 4, 8, 16):
        assert statistics.paired(page.accuracies(again, "r1", "superposed", chains), plain).mean > 3
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    run.main(["--seeds", "1", "--only", "r1", "--output", str(tmp_path)])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == parts
    assert (tmp_path / "README.md").read_text().startswith("# What superposing buys")


def test_a_part_of_the_evidence_does_not_replace_the_whole(capsys):
    for arguments in (["--only", "r1"], ["--seeds", "2"], ["train.epochs=30"]):
        with pytest.raises(SystemExit):
            module("run").main(arguments)
        assert "--output must name a folder" in capsys.readouterr().err


def test_an_unknown_setting_is_named(capsys):
    with pytest.raises(SystemExit):
        module("run").main(["--only", "r1,r9"])
    assert "--only must name settings" in (message := capsys.readouterr().err)
    assert "got r9" in message


def test_rows_of_another_recipe_are_not_taken_for_finished():
    digest_of = module("evidence").digest_of
    digests = [digest_of("r1", 100), digest_of("r1", 101), digest_of("r1", 100, ["train.lr=0.05"])]
    digests += [digest_of("r1_hot", 100), digest_of("r1_split_1", 100)]
    assert len(set(digests)) == 5
    assert digest_of("r1", 100) == digests[0]


@pytest.mark.ray
@pytest.mark.slow
def test_its_networks_are_those_of_the_product_bit_for_bit(ray_address, tmp_path):
    own = [*SHORT, "seed=3", "superposition.gate_tolerance=none", "tickets.num_chains=4"]
    rows = module("evidence").rows_of("r1", 3, SHORT)
    found = {(row["variant"], row["chains"]): row["digest"] for row in rows}
    result = train(load_config(FOLDER / "r1.yaml", [*own, f"storage={tmp_path}"])).result
    assert result["superposed"]["digest"] == found["superposed", 4]
    assert result["pretrained"]["digest"] == found["pretraining", 0]
