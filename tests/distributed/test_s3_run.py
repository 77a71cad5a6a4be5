"""Whole jobs whose files lie in an object store: a local S3 server, over real HTTP."""

import json
import socket
from pathlib import Path

import boto3
import pytest
from small_runs import store_pretraining

from suptickets_ray import load_config, train, tune
from suptickets_ray.cli import main
from suptickets_ray.progress.events import Resumed, TicketFinished
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.tickets.ticket_store import TicketStore

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bucket(s3_server):
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    client.create_bucket(Bucket="whole-runs")
    return f"s3://whole-runs/runs?endpoint_override={s3_server}&scheme=http&region=us-east-1"


@pytest.mark.slow
def test_a_run_in_an_object_store_is_killed_goes_on_and_ends_in_the_same_bits(
    finished_run, ray_address, bucket, tiny, capsys
):
    config = load_config(None, [*tiny, f"storage={bucket}", "name=killed", "cluster.num_explorers=1"])
    store = RunStore(child(bucket, "killed"))
    for name in (
        "config.yaml",
        "pretrained.pt",
    ):  # pretraining in an object store: test_faults.py
        store.write(name, (Path(finished_run.path) / name).read_bytes())

    def kill_at_the_second_ticket(event):
        seen.append(type(event))
        if seen.count(TicketFinished) == 2:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        train(config, kill_at_the_second_ticket)
    path = child(bucket, "killed")
    assert TicketStore(RunStore(path)).list()
    again = []
    finished = train(config, again.append)
    assert finished.path == path
    resumed = [event.tickets for event in again if isinstance(event, Resumed) and event.tickets]
    assert resumed[0] >= 1  # what was finished is not made again
    recorded = json.loads((Path(finished_run.path) / "result.json").read_text())
    assert finished.result["superposed"]["digest"] == recorded["superposed"]["digest"]
    files = RunStore(path).list("")
    assert {"config.yaml", "result.json", "report.html", "superposed.arrow", "pretrained.pt"} <= set(files)
    assert any(name.startswith("tensorboard/chain-000/events.out.tfevents") for name in files)
    assert ".lock" not in files
    assert not any(name.startswith("ray_train/") for name in files)
    assert train(config).resumed
    assert main(["superpose", path, "method=caa"]) == 0
    assert "Digest:" in capsys.readouterr().out
    RunStore(path).delete("report.html")
    assert main(["report", path]) == 0
    assert b"<svg" in RunStore(path).read("report.html")
    capsys.readouterr()
    assert main(["evaluate", child(path, "superposed.arrow"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == finished.result["superposed"]["accuracy"]


@pytest.mark.slow
def test_a_search_in_an_object_store_ends_with_its_answer(ray_address, bucket, tmp_path):
    space = "search.space={superposition.method: {grid_search: [cia, caa]}}"
    recipe = ["train.epochs=40", "tickets.cycle_rate=0.1", "tickets.cycle_epochs=4", "tickets.num_chains=2"]
    recipe += ["cluster.num_workers=1", "cluster.num_explorers=1"]
    store_pretraining(RunStore(child(bucket, "search")), tmp_path / "donor", recipe)
    result = tune(load_config(None, [*recipe, space, f"storage={bucket}", "name=search"])).result
    assert (result["pretrainings"], result["cycles_trained"], len(result["trials"])) == (1, 2, 2)
    files = RunStore(child(bucket, "search")).list("")
    assert {"best.yaml", "result.json", "report.html", "trials.parquet"} <= set(files)
    assert sum(name.startswith("tensorboard/trial-") for name in files) >= 2


@pytest.mark.slow
def test_a_second_process_keeps_out_while_the_first_gives_signs_of_life(bucket, monkeypatch):
    from suptickets_ray.distributed.cluster import run_lock as lock

    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.1)
    path = child(bucket, "locked")
    refused = pytest.raises(ValueError, match="Cannot lock the run in .*: process .* works on it")
    with lock.only_process(path):
        first = RunStore(path).read(".lock")
        with refused, lock.only_process(path):
            pass
        assert RunStore(path).read(".lock") != first  # it goes on giving signs
    assert not RunStore(path).exists(".lock")
    # A holder that died without a word on another machine counts as dead after some silence.
    RunStore(path).write(".lock", json.dumps({"holder": "x", "host": "elsewhere", "pid": 2**22 + 1}).encode())
    with lock.only_process(path):
        assert json.loads(RunStore(path).read(".lock"))["host"] == socket.gethostname()
