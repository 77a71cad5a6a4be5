"""The command as a person gives it: exit codes, sentences, stopping and going on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from suptickets_ray.cli import main
from suptickets_ray.reporting.options import OPTIONS, describe


def command(*arguments):
    return [sys.executable, "-m", "suptickets_ray.cli", *arguments]


@pytest.fixture(autouse=True)
def handlers():
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["method.density=5"], "method.density must be in (0, 1]; got 5. Did you mean 0.05?"),
        (["method.nam=rigl"], "unknown key 'method.nam'; did you mean 'method.name'?"),
        (["method.name=rigel"], "unknown method 'rigel'; did you mean 'rigl'?"),
        (["train.epochs=many"], 'train.epochs must be a whole number; got "many".'),
        (["train.epochs=20", "tickets.cycle_epochs=5"], "so that one cycle fits; got 5."),
        (["nowhere.yaml"], "there is no 'nowhere.yaml'."),
        (["a.yaml", "b.yaml"], "there must be at most one recipe"),
        (["storage=s3://bucket/runs"], "storage must be a folder that all machines of the cluster share"),
        (["data.train_size=501"], "data.train_size must be at most 500"),
        (["cluster.address=127.0.0.1:1"], "cluster.address must be a Ray cluster that answers; got '127.0.0.1:1'"),
    ],
)
def test_bad_configuration_is_one_sentence_and_exit_code_2_before_ray_starts(arguments, sentence, tmp_path, capsys):
    if not any(text.startswith("storage=") for text in arguments):
        arguments = [*arguments, f"storage={tmp_path}"]
    import ray

    before = ray.is_initialized()
    assert main(["train", *arguments]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert ray.is_initialized() == before
    assert not list(tmp_path.iterdir())


def test_a_storage_that_cannot_be_written_is_exit_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert main(["train", f"storage={tmp_path / 'file'}"]) == 2
    assert "storage must be a folder that can be written" in " ".join(capsys.readouterr().err.split())


def test_no_command_is_a_usage_error():
    with pytest.raises(SystemExit) as raised:
        main([])
    assert raised.value.code == 2


def test_a_finished_run_answers_that_it_is_done_without_ray(finished_run):
    run = Path(finished_run.path)
    arguments = command("train", str(run / "config.yaml"))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "This run is done already." in done.stdout
    accuracy = json.loads((run / "result.json").read_text())["superposed"]["accuracy"]
    assert f"{accuracy:.2%}" in done.stdout


def test_a_finished_run_of_another_recipe_is_exit_code_2_and_names_the_keys(finished_run, capsys):
    assert main(["train", str(Path(finished_run.path) / "config.yaml"), "seed=5"]) == 2
    assert "these keys differ: seed." in " ".join(capsys.readouterr().err.split())


def wait_for(condition, process, seconds=90):
    """Polls, because another process's files are what is waited for; fails when it ended or takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("moment", ["phase one", "exploration"])
def test_a_killed_and_repeated_run_reaches_the_same_digest(finished_run, ray_address, tmp_path, moment):
    config = Path(finished_run.path) / "config.yaml"
    arguments = command("train", str(config), f"storage={tmp_path}", "name=a", f"cluster.address={ray_address}")
    run = tmp_path / "a"
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if moment == "phase one":
        wait_for(lambda: list(run.glob("ray_train/*/checkpoint_manager_snapshot.json")), process)
    else:
        wait_for(lambda: list(run.glob("chains/*.pt")), process)
    process.kill()
    process.communicate()
    assert (run / "pretrained.pt").exists() == (moment == "exploration")
    assert not (run / "result.json").exists()
    again = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    if moment == "exploration":
        assert "going on with the finished phase one" in again.stdout
    else:
        assert "epoch 9 of 96" not in again.stdout  # the first tenth was not run again
    expected = json.loads((Path(finished_run.path) / "result.json").read_text())["superposed"]["digest"]
    assert json.loads((run / "result.json").read_text())["superposed"]["digest"] == expected


def processes_marked(mark):
    """Processes that inherited the mark in their environment, zombies apart: they wait for whoever started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            alive = (path.parent / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and mark.encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_local_run_with_130_and_leaves_no_process(tmp_path, number):
    mark = uuid.uuid4().hex
    environment = {**os.environ, "SUPTICKETS_TEST_MARK": mark}
    arguments = command("train", f"storage={tmp_path}", "name=a", "train.checkpoint_every_epochs=5")
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: list(tmp_path.glob("a/tensorboard/phase-one/*")), process)
    assert len(processes_marked(mark)) > 4
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    deadline = time.monotonic() + 10
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_options_lists_every_row_of_every_table_with_a_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["options"]) == 0
    printed = capsys.readouterr().out
    titles = "|".join(rf"^{re.escape(key)}\s*$" for key in OPTIONS)
    blocks = dict(zip(OPTIONS, re.split(titles, printed, flags=re.M)[1:], strict=True))
    for key, table in OPTIONS.items():
        for name, row in table.items():
            assert describe(row)
            assert re.search(rf"^ *{name} +{re.escape(describe(row)[:40])}", blocks[key], re.M), (key, name)
