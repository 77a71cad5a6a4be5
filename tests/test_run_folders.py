"""`suptickets runs`: what a folder's files say about its run, and removing one."""

import json
import shutil
import subprocess
import sys

import pytest

from suptickets_ray.cli import main
from suptickets_ray.commands.run_folders import state_of
from suptickets_ray.distributed.cluster.run_lock import only_process
from suptickets_ray.offline.run_folders import list_run_folders, read_run_folder, run_folder


@pytest.fixture
def storage(stored_runs, tmp_path, monkeypatch):
    """A storage with a complete run, one interrupted in each phase, a search, a damaged one, and other files."""
    root = tmp_path / "runs"
    for name in ("complete", "exploring", "pretraining", "damaged"):
        shutil.copytree(stored_runs / "a", root / name)
    for name in ("exploring", "pretraining"):
        (root / name / "result.json").unlink()
    (root / "exploring/tickets/chain-001/cycle-001.arrow").unlink()
    shutil.rmtree(root / "pretraining/tickets")
    (root / "pretraining/pretrained.pt").unlink()
    (root / "damaged/result.json").write_text("[")
    (root / "damaged/config.yaml").write_text("a: [")
    (root / "search/points/1").mkdir(parents=True)
    (root / "search/points/1/seed-000.json").write_text("{}")
    (root / "search/search.json").write_text("{}")
    (root / "search/result.json").write_text(json.dumps({"best": {"accuracy": 0.5}, "seconds": {"total": 3661.0}}))
    (root / "search/config.yaml").write_text("name: search")
    (root / "notes.txt").write_text("no run")
    (root / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return root


def test_a_list_has_every_run_with_its_state_and_numbers(storage):
    found = {folder.name: folder for folder in list_run_folders(str(storage))}
    states = {name: state_of(folder) for name, folder in found.items()}
    assert states == {
        "complete": "complete",
        "damaged": "interrupted, exploring",
        "exploring": "interrupted, exploring",
        "pretraining": "interrupted, pretraining",
        "search": "complete",
    }
    run = found["complete"]
    accuracy = json.loads((storage / "complete/result.json").read_text())["superposed"]["accuracy"]
    assert (run.accuracy, run.density, run.tickets, run.num_tickets, run.seconds) == (accuracy, 0.1, 4, 4, 50.0)
    assert run.size == sum(path.stat().st_size for path in (storage / "complete").rglob("*") if path.is_file())
    assert (found["exploring"].tickets, found["exploring"].num_tickets) == (3, 4)
    assert (found["search"].accuracy, found["search"].tickets, found["search"].seconds) == (0.5, 1, 3661.0)


def test_the_command_prints_a_row_per_run(storage, capsys):
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "complete", "damaged", "exploring", "pretraining", "search"]
    assert lines[0].split() == ["name", "state", "test", "density", "tickets", "h:mm:ss", "size"]
    assert lines[-1].split()[:6] == ["search", "complete", "50.00%", "1", "trial", "1:01:01"]


def test_a_running_run_says_on_which_host(storage):
    import socket

    with only_process(str(storage / "exploring")):
        state = state_of(read_run_folder(str(storage / "exploring")))
    assert state == f"running on {socket.gethostname()}, exploring"


def test_status_shows_how_far_a_running_job_is(storage, capsys):
    from suptickets_ray.offline.job_status import stored_state

    run = storage / "exploring"
    timeline = json.loads((run / "timeline.json").read_text())
    timeline["spans"].pop()  # it is not evaluated yet
    timeline["spans"].append({"kind": "explore", "began": 5001.0, "ended": 5012.0, "start": 1})
    (run / "timeline.json").write_text(json.dumps(timeline))
    with only_process(str(run)):
        assert main(["status", "exploring"]) == 0
    printed = capsys.readouterr().out
    for words in ("running on", "16/16 epochs", "4/4 tickets", "1 merged", "3 trained"):
        assert words in printed
    state = stored_state(read_run_folder(str(run)))
    assert (state.phase, state.began, state.num_tickets) == ("explore", 5000.0, 4)


def test_status_shows_the_epoch_of_a_running_pretraining(storage, capsys):
    run = storage / "pretraining"
    epoch = {"ended": 1010.0, "epoch": 7, "epochs": 16, "loss": 0.5, "validation_accuracy": 0.75}
    spans = [{"kind": "pretrain", "began": 1001.0, "ended": 1010.0, "start": 0}]
    content = {"starts": [{"began": 1000.0, "ended": 1010.0}], "spans": spans, "epoch": epoch}
    (run / "timeline.json").write_text(json.dumps(content))
    with only_process(str(run)):
        assert main(["status", "pretraining"]) == 0
    printed = capsys.readouterr().out
    assert "7/16 epochs" in printed
    assert "validation 75.00%" in printed


def test_status_of_a_finished_run_is_its_row(storage, capsys):
    assert main(["status", "complete"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["complete", "complete"]


def test_a_storage_without_runs_says_how_to_get_one(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert "The first one: suptickets train" in " ".join(capsys.readouterr().out.split())


def test_runs_imports_neither_torch_nor_ray(storage):
    code = (
        "import sys; from suptickets_ray.cli import main; main(['runs']); "
        "assert not {'torch', 'ray', 'pydantic', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=storage.parent)


def test_removing_asks_and_removes_only_what_was_named(storage, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter(["n", "y"])
    monkeypatch.setattr("builtins.input", lambda *_: next(answers))
    assert main(["runs", "rm", "complete"]) == 0
    assert (storage / "complete").exists()
    assert main(["runs", "rm", "complete", "runs/exploring"]) == 0
    assert sorted(path.name for path in storage.iterdir()) == ["damaged", "empty", "notes.txt", "pretraining", "search"]


def test_removing_without_a_terminal_needs_yes(storage, capsys):
    assert main(["runs", "rm", "complete"]) == 2
    assert "Add --yes." in capsys.readouterr().err
    assert main(["runs", "rm", "complete", "--yes"]) == 0
    assert not (storage / "complete").exists()


def test_a_running_run_is_never_removed(storage, capsys):
    with only_process(str(storage / "exploring")):
        assert main(["runs", "rm", "complete", "exploring", "--yes"]) == 2
    assert "Cannot remove" in " ".join(capsys.readouterr().err.split())
    assert (storage / "complete/result.json").exists()
    assert (storage / "exploring/pretrained.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rm"], "runs rm must be given the name or folder of a run"),
        (["rm", "compelte", "--yes"], "must be the folder of a run or search; it has no config.yaml"),
        (["rm", "empty", "--yes"], "must be the folder of a run or search"),
        (["--yes"], "--yes has no effect without rm"),
        (["a", "b"], "runs must be given one storage"),
    ],
)
def test_a_wrong_command_is_one_sentence(storage, capsys, arguments, words):
    assert main(["runs", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_name_is_in_the_storage_and_a_path_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder("digits", "runs") == str(tmp_path / "runs/digits")
    assert run_folder("other/digits", "runs") == str(tmp_path / "other/digits")
    assert run_folder("digits", "s3://b/runs?region=r") == "s3://b/runs/digits?region=r"
    assert run_folder("s3://b/runs/digits", "runs") == "s3://b/runs/digits"


def test_runs_on_s3_are_listed_and_removed(storage, s3_server, monkeypatch, capsys):
    boto3 = pytest.importorskip("boto3")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("suptickets_ray.distributed.cluster.run_lock.POLL_SECONDS", 0.0)
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    client.create_bucket(Bucket="listed")
    for file in filter(lambda path: path.is_file(), (storage / "complete").rglob("*")):
        client.put_object(
            Bucket="listed", Key=f"runs/a/{file.relative_to(storage / 'complete')}", Body=file.read_bytes()
        )
    query = f"?endpoint_override={s3_server}&scheme=http&region=us-east-1"
    (run,) = list_run_folders(f"s3://listed/runs{query}")
    assert (run.name, run.path, run.tickets, run.is_complete) == ("a", f"s3://listed/runs/a{query}", 4, True)
    assert state_of(run) == "complete"
    assert main(["runs", "rm", run.path, "--yes"]) == 0
    left = client.list_objects_v2(Bucket="listed").get("Contents", [])
    assert [item["Key"] for item in left if not item["Key"].endswith("/")] == []
