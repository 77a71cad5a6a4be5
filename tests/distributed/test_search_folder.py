"""A folder is one run's or one search's: who would write into another's is refused before anything is started."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import store_pretraining

from suptickets_ray import load_config, train, tune
from suptickets_ray.distributed.cluster.run_lock import only_process
from suptickets_ray.distributed.tune.result import conclude, finished_search
from suptickets_ray.distributed.tune.tune import trainable
from suptickets_ray.recipes.load import config_digest, to_yaml
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.plan import SearchPlan
from suptickets_ray.tickets.store import RunStore

SPACE = "search.space={superposition.method: {grid_search: [cia, caa]}}"


@pytest.fixture
def config(tmp_path):
    return load_config(None, [SPACE, f"storage={tmp_path}", "name=a"])


def folder(config, *files):
    """A folder with the recipe and some files; returns what lies there."""
    store = RunStore(f"{config.storage}/{config.name}")
    store.write("config.yaml", to_yaml(config).encode())
    for path in files:
        store.write(path, b"{}")
    return Path(config.storage), contents(config)


def contents(config):
    return sorted(str(path) for path in Path(config.storage).rglob("*"))


@pytest.mark.parametrize("files", [["search.json"], ["search.json", "result.json"], ["pretraining/abc/pretrained.pt"]])
def test_a_run_keeps_out_of_the_folder_of_a_search(config, files):
    _, before = folder(config, *files)
    with pytest.raises(ValueError, match="Cannot run in .*/a: the folder holds a search. Choose another name="):
        train(config)
    assert contents(config) == before


@pytest.mark.parametrize("files", [[], ["pretrained.pt"], ["superposed.arrow", "result.json"]])
@pytest.mark.parametrize("start", [tune, trainable])
def test_a_search_keeps_out_of_the_folder_of_a_run(config, files, start):
    _, before = folder(config, *files)
    with pytest.raises(ValueError, match="Cannot search in .*/a: the folder holds a run. Choose another name="):
        start(config)
    assert contents(config) == before


@pytest.mark.parametrize("start", [tune, trainable])
def test_a_search_of_another_recipe_or_space_is_refused(config, start):
    folder(config, "search.json")
    for setting, key in (("train.lr=0.3", "train.lr"), ("search.num_seeds=2", "search.num_seeds")):
        other = load_config(None, [SPACE, setting, f"storage={config.storage}", "name=a"])
        with pytest.raises(ValueError, match=f"Cannot continue the search in .*these keys differ: {key}"):
            start(other)


@pytest.mark.parametrize("start", [tune, trainable])
def test_a_point_that_cannot_work_is_found_before_anything_is_started(config, start):
    space = "search.space={data.batch_size: {grid_search: [25, 100000]}}"
    with pytest.raises(ValueError, match="data.batch_size"):
        start(load_config(None, [space, f"storage={config.storage}", "name=b"]))
    assert not (Path(config.storage) / "b/config.yaml").exists()


def test_a_trainable_keeps_out_of_a_search_that_runs(config, ray_address):
    with (
        only_process(f"{config.storage}/a"),
        pytest.raises(ValueError, match="in .*/a: process [0-9]+ on"),
    ):
        trainable(config)
    assert not (Path(config.storage) / "a/config.yaml").exists()


def result(config, *states):
    points = SearchPlan(config).points
    return {
        "config_digest": config_digest(config),
        "trials": [{"values": point, "state": state} for point, state in zip(points, states, strict=True)],
    }


def test_a_search_with_failed_trials_is_not_done(config, monkeypatch):
    folder(config, "search.json")
    store = RunStore(f"{config.storage}/a")
    store.write("result.json", json.dumps(result(config, "complete", "stopped")).encode())
    assert tune(config).resumed
    store.write("result.json", json.dumps(result(config, "complete", "failed")).encode())

    def goes_on(*_):
        raise InterruptedError

    monkeypatch.setattr("suptickets_ray.distributed.tune.tune.preflight", goes_on)
    with pytest.raises(InterruptedError):
        tune(config)


def test_where_all_have_diverged_the_error_says_so(config):
    plan, files = SearchPlan(config), SearchFiles(f"{config.storage}/a", config)
    row = {"state": "complete", "values": plan.points[0], "error": None, "validation_accuracy": None}
    with pytest.raises(RuntimeError, match="all trials have diverged, and none has a finite validation_accuracy"):
        conclude(plan, files, [row], None, [])
    assert finished_search(files, config) is None


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_with_too_little_room_is_refused_before_anything_is_trained(config, tmp_path):
    """On a Ray of its own with one CPU: one explorer of one CPU has room, two trials at once have not."""
    small = ["train.epochs=20", "tickets.cycle_epochs=2", "cluster.num_workers=1", "train.checkpoint_every_epochs=50"]
    small += ["tickets.num_chains=2"]
    store_pretraining(RunStore(str(tmp_path / "fits")), tmp_path / "donor", small)
    code = f"""
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=150 * 2**20)
from suptickets_ray import load_config, tune
small = [*{small!r}, {SPACE!r}, "storage={tmp_path}"]
for wrong in ("search.max_concurrent_trials=2", "cluster.superposer_gpus=1"):
    try:
        tune(load_config(None, [*small, wrong, "name=refused"]))
    except ValueError as error:
        print("refused:", error)
one = "search.space={{superposition.cima_factor: {{grid_search: [0.2]}}}}"
print("states:", [row["state"] for row in tune(load_config(None, [*small, one, "name=fits"])).result["trials"]])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 trials x 1 explorers x 1 CPU and 0 GPU = 2 explorers, and the cluster fits 1" in done.stdout
    assert done.stdout.count("refused:") == 2, done.stdout
    assert "states: ['complete']" in done.stdout
    assert not (tmp_path / "refused/pretraining").exists()
