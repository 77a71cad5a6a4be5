"""Searches through a real Ray Tune; what they share is counted in the files."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from ray import tune as ray_tune
from ray.util import placement_group_table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from suptickets_ray import load_config, train, tune
from suptickets_ray.distributed.cluster.run_lock import only_process
from suptickets_ray.distributed.tune.tune import param_space, trainable
from suptickets_ray.progress.events import PhaseStarted, TrialFinished

pytestmark = pytest.mark.ray

SMALL = [
    "train.epochs=40",
    "tickets.cycle_rate=0.1",
    "tickets.num_chains=2",
    "tickets.cycle_epochs=2",
    "cluster.num_workers=1",
    "cluster.num_explorers=1",
    "train.checkpoint_every_epochs=50",
]
SPACE = (
    "search.space={tickets.cycle_epochs: {grid_search: [2, 4]}, superposition.cima_factor: {grid_search: [0.2, 0.9]}}"
)


@pytest.fixture(scope="module")
def finished(ray_address, tmp_path_factory):
    storage = tmp_path_factory.mktemp("search")
    events = []
    result = tune(load_config(None, [*SMALL, SPACE, f"storage={storage}", "name=search"]), events.append)
    return result, events


@pytest.fixture
def pretrained(finished, tmp_path):
    """Makes the folder of a later search, with the pretraining of `finished`: of `SMALL` and its first seed."""

    def make(name):
        shutil.copytree(Path(finished[0].path) / "pretraining", tmp_path / name / "pretraining")

    return make


def read(finished):
    return json.loads((Path(finished[0].path) / "result.json").read_text())


def test_every_point_is_there_and_nothing_was_trained_twice(finished):
    result = read(finished)
    assert result["state"] == "complete"
    values = [
        (row["values"]["tickets.cycle_epochs"], row["values"]["superposition.cima_factor"]) for row in result["trials"]
    ]
    assert sorted(values) == [(2, 0.2), (2, 0.9), (4, 0.2), (4, 0.9)]
    assert all(row["state"] == "complete" for row in result["trials"])
    assert result["pretrainings"] == 1
    assert result["cycles_trained"] == 2 * 2 + 2 * 1  # 2 chains of 2 short cycles, 2 chains of a long one
    assert sum(row["cycles_trained"] for row in result["trials"]) == 6
    # Counted as they were trained, not by what lies there.
    assert json.loads((Path(finished[0].path) / "search.json").read_text()) == {"pretraining": 1, "cycle": 6}
    assert sum(isinstance(event, TrialFinished) for event in finished[1]) == 4


def test_the_best_is_the_best_on_validation_and_the_only_one_tested(finished):
    result = read(finished)
    best = max(result["trials"], key=lambda row: row["validation_accuracy"])
    assert result["best"]["values"] == best["values"]
    assert result["best"]["validation_accuracy"] == best["validation_accuracy"]
    assert 0 < result["best"]["accuracy"] <= 1
    assert not any("accuracy" in row for row in result["trials"])


@pytest.mark.slow
def test_the_best_recipe_trains_to_the_best_digest(finished, tmp_path):
    config = load_config(Path(finished[0].path) / "best.yaml", [f"storage={tmp_path}"])
    assert train(config).result["superposed"]["digest"] == read(finished)["best"]["digest"]


def test_the_trials_are_a_table_for_any_parquet_reader(finished):
    table = pq.read_table(io.BytesIO((Path(finished[0].path) / "trials.parquet").read_bytes())).to_pydict()
    assert sorted(table["tickets.cycle_epochs"]) == [2, 2, 4, 4]
    assert table["validation_accuracy"] == [row["validation_accuracy"] for row in read(finished)["trials"]]


def test_tensorboard_has_a_page_of_hyperparameters_and_scalars_per_trial_in_one_tree(finished):
    tree, result = Path(finished[0].path) / "tensorboard", read(finished)
    trials = sorted(tree.glob("trial-*"))
    assert len(trials) == 4
    found, tested = {}, 0
    for folder in trials:
        events = EventAccumulator(str(folder))
        events.Reload()
        start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        hparams = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
        values = {key: value.number_value or value.string_value for key, value in hparams.items()}
        found[values["tickets.cycle_epochs"], values["superposition.cima_factor"]] = events.Scalars(
            "validation_accuracy"
        )[0].value
        assert len(events.Scalars("search/validation_accuracy")) == 4 // values["tickets.cycle_epochs"]
        tested += "accuracy" in events.Tags()["scalars"]
    assert tested == 1
    for row in result["trials"]:
        key = (row["values"]["tickets.cycle_epochs"], row["values"]["superposition.cima_factor"])
        assert found[key] == pytest.approx(row["validation_accuracy"], abs=1e-6)
    assert {path.name.split("-")[0] for path in tree.iterdir()} == {"trial", "exploration", "pretraining"}
    assert not list((Path(finished[0].path) / "ray_tune").rglob("events.out.tfevents*"))


def test_the_same_search_again_is_done_at_once_and_another_one_is_refused(finished):
    path = Path(finished[0].path)
    again = [*SMALL, f"storage={path.parent}", "name=search"]
    began = time.monotonic()
    assert tune(load_config(None, [*again, SPACE, "search.max_concurrent_trials=1"])).resumed
    assert time.monotonic() - began < 5
    with pytest.raises(ValueError, match="Cannot continue the search in .*these keys differ: search.num_seeds"):
        tune(load_config(None, [*again, SPACE, "search.num_seeds=2"]))
    with pytest.raises(ValueError, match="these keys differ: train.lr"):
        tune(load_config(None, [*again, SPACE, "train.lr=0.3"]))


def test_the_page_shows_the_figures_and_fetches_nothing(finished):
    page = (Path(finished[0].path) / "report.html").read_text()
    assert "by tickets.cycle_epochs" in page
    assert "by superposition.cima_factor" in page
    assert "Cost of each trial" in page
    assert "src=" not in page
    assert len(page) < 500_000


@pytest.mark.slow
def test_a_hopeless_trial_is_stopped_and_leaves_no_actor_and_no_bundle(ray_address, pretrained, tmp_path):
    # The last one goes on in the process of the one that was stopped.
    space = "search.space={tickets.lr_high: {grid_search: [0.2, 0.1, 1000000.0, 0.05]}}"
    # 36 epochs of pretraining, as in SMALL, and 6 cycles.
    settings = [*SMALL, "train.epochs=48", "tickets.cycle_rate=0.25", "superposition.gate_tolerance=none", space]
    settings += ["search.scheduler=asha", "search.max_concurrent_trials=2", f"storage={tmp_path}", "name=asha"]
    pretrained("asha")
    result = tune(load_config(None, settings)).result
    states = {row["values"]["tickets.lr_high"]: row["state"] for row in result["trials"]}
    assert states[1000000.0] == "stopped"
    assert "complete" in states.values()
    assert "failed" not in states.values()
    stopped = next(
        row for row in result["trials"] if row["state"] == "stopped" and row["values"]["tickets.lr_high"] > 1
    )
    assert stopped["validation_accuracy"] is not None
    assert any(json.loads(path.read_text()).get("stopped") for path in (tmp_path / "asha/points").glob("*/running"))
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 4:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not [group for group in placement_group_table().values() if group["state"] == "CREATED"]


@pytest.mark.slow
def test_a_search_goes_on_after_its_driver_was_killed_and_runs_nothing_finished_again(
    ray_address, finished, pretrained, tmp_path
):
    two = "search.space={superposition.cima_factor: {grid_search: [0.2, 0.9]}}"
    settings = [*SMALL, two, f"storage={tmp_path}", "name=search", "search.max_concurrent_trials=1"]
    command = [sys.executable, "-m", "suptickets_ray.cli", "tune", *settings, f"cluster.address={ray_address}"]
    pretrained("search")
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    points = tmp_path / "search/points"
    deadline = time.monotonic() + 120
    while not list(points.glob("*/seed-000.json")):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes = [driver, *psutil.Process(driver.pid).children()]
    os.killpg(driver.pid, signal.SIGKILL)
    psutil.wait_procs(processes, 30)  # the driver, too, which holds the folder
    before = {path: path.read_text() for path in points.glob("*/seed-000.json")}
    result = tune(load_config(None, settings)).result
    assert all(path.read_text() == text for path, text in before.items())
    assert (result["pretrainings"], result["cycles_trained"]) == (1, 4)
    assert [row["state"] for row in result["trials"]] == ["complete", "complete"]
    digests = {row["values"]["superposition.cima_factor"]: row["digest"] for row in result["trials"]}
    short = [row for row in read(finished)["trials"] if row["values"]["tickets.cycle_epochs"] == 2]
    assert digests == {row["values"]["superposition.cima_factor"]: row["digest"] for row in short}


@pytest.mark.slow
def test_optuna_suggests_points_and_seeds_repeat_each_with_a_shared_pretraining(ray_address, pretrained, tmp_path):
    space = "search.space={superposition.cima_factor: {uniform: [0.1, 0.9]}, tickets.cycle_epochs: {choice: [2, 4]}}"
    settings = [*SMALL, space, "search.searcher=optuna", "search.num_seeds=2", f"storage={tmp_path}", "name=optuna"]
    with pytest.raises(ValueError, match="search.num_trials must be given"):
        tune(load_config(None, settings))
    wide = "search.space={train.lr: {uniform: [0.1, 0.9]}}"
    with pytest.raises(ValueError, match="search.space.train.lr must be a choice with search.searcher 'optuna'"):
        tune(load_config(None, [*settings, wide, "search.num_trials=4", "name=other"]))
    pretrained("optuna")  # of the first seed
    result = tune(load_config(None, [*settings, "search.num_trials=2"])).result
    assert len(result["trials"]) == 2
    assert result["pretrainings"] == 2  # one per seed, whatever the point
    assert all(row["seeds"] == 2 and row["standard_error"] is not None for row in result["trials"])
    lengths = [row["values"]["tickets.cycle_epochs"] for row in result["trials"]]
    assert result["cycles_trained"] == sum(2 * 2 * (4 // length) for length in set(lengths))


@pytest.mark.slow
def test_a_tuner_of_ones_own_takes_trainable_and_space_and_draws_the_points(ray_address, pretrained, tmp_path):
    space = "search.space={tickets.cycle_epochs: {choice: [2, 4]}, superposition.cima_factor: {uniform: [0.1, 0.9]}}"
    config = load_config(None, [*SMALL, space, f"storage={tmp_path}", "name=own"])
    pretrained("own")
    tuner = ray_tune.Tuner(
        trainable(config),
        param_space=param_space(config),
        tune_config=ray_tune.TuneConfig(metric="validation_accuracy", mode="max", num_samples=2),
        run_config=ray_tune.RunConfig(storage_path=str(tmp_path), name="tune", verbose=0),
    )
    with pytest.raises(ValueError, match="Cannot lock the run"), only_process(str(tmp_path / "own")):
        pass
    grid = tuner.fit()
    assert len(grid) == 2
    assert not grid.errors
    assert 0 < grid.get_best_result().metrics["validation_accuracy"] <= 1
    assert trainable(config) is not None  # a second time in this process, which has the folder


@pytest.mark.slow
def test_the_same_command_tries_again_what_failed(ray_address, pretrained, tmp_path, monkeypatch):
    """An average that cannot be taken while a certain file is there, which it is once pretraining is done."""
    pretrained("again")
    flag = tmp_path / "fails"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fragile_average.py").write_text(
        "from pathlib import Path\n"
        "def newest(old, new, num_tickets, factor):\n"
        f"    assert not Path({str(flag)!r}).exists(), 'it is planted'\n"
        "    return new\n"
    )
    space = "search.space={superposition.method: {grid_search: [cia, 'fragile_average:newest']}}"
    config = load_config(None, [*SMALL, space, f"storage={tmp_path}", "name=again"])

    def plant(event):
        if event == PhaseStarted("search", trials=2):
            flag.touch()

    result = tune(config, plant).result
    assert [row["state"] for row in result["trials"]] == ["complete", "failed"]
    assert any("1 trials failed, the first with: " in text and "it is planted" in text for text in result["warnings"])
    first = result["trials"][0]
    flag.unlink()
    again = tune(config)
    assert not again.resumed
    assert [row["state"] for row in again.result["trials"]] == ["complete", "complete"]
    assert again.result["trials"][0] == first
    assert (again.result["pretrainings"], again.result["cycles_trained"]) == (1, 4)
    assert tune(config).resumed


def test_more_explorers_than_the_cluster_has_room_for_are_refused_with_the_sum(ray_address, tmp_path):
    settings = [*SMALL, SPACE, "search.max_concurrent_trials=5", f"storage={tmp_path}"]
    with pytest.raises(ValueError, match="x 1 explorers x 1 CPU and 0 GPU = 5 explorers, and the cluster fits 4"):
        tune(load_config(None, settings))
    assert ray.is_initialized()
