"""`--submit` against a real head with token authentication, in a process group of its own."""

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from suptickets_ray import load_config
from suptickets_ray.cli import main
from suptickets_ray.distributed.cluster.submit import user_modules, watch_job
from suptickets_ray.recipes.load import to_dict, to_yaml

pytestmark = pytest.mark.ray
TINY = [
    "train.epochs=20",
    "tickets.cycle_rate=0.1",
    "tickets.cycle_epochs=2",
    "tickets.num_chains=1",
    "cluster.num_workers=1",
]


@pytest.fixture(scope="module")
def head(free_ports):
    """A head that asks for a token; its address and that of its dashboard."""
    temp_dir = tempfile.mkdtemp(prefix="st-")
    home = Path(temp_dir) / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("a" * 40)
    (home / ".ray/auth_token").chmod(0o600)
    port, dashboard, client, agent, agent_grpc, runtime, metrics = free_ports(7)
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_TMPDIR": temp_dir}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # at its end nothing is worth waiting for
    ray = str(Path(sys.executable).parent / "ray")
    # Jobs call `python`: ours comes first.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    options = [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
    options += [f"--temp-dir={temp_dir}/ray", "--object-store-memory=100000000", "--disable-usage-stats"]
    options += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    options += [f"--dashboard-agent-grpc-port={agent_grpc}", f"--runtime-env-agent-port={runtime}"]
    options += [f"--metrics-export-port={metrics}"]
    process = subprocess.Popen(
        [ray, "start", "--head", "--block", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:  # the port is open before the dashboard knows of jobs
                urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/version", timeout=5).close()
                break
            except urllib.error.HTTPError as error:
                if error.code in (401, 403):
                    break
            except OSError:
                pass
            time.sleep(0.3)
        yield f"http://127.0.0.1:{dashboard}", home
    finally:
        process.terminate()  # --block: it ends what it started
        process.wait(60)


def submit(head, *arguments):
    """In a process of its own: Ray's client keeps the first token that a process has shown."""
    environment = {**os.environ, "HOME": str(head[1]), "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-m", "suptickets_ray.cli", "train", *TINY, *arguments, "--submit", head[0]]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def shipped(head, tmp_path_factory):
    """The storage of a run that was submitted as a job, and what the command said."""
    storage = tmp_path_factory.mktemp("shipped")
    return storage, submit(head, f"storage={storage}", "name=job")


@pytest.mark.slow
def test_a_job_is_shipped_watched_and_its_exit_code_comes_back(head, shipped):
    storage, done = shipped
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sup-ticket" in done.stdout
    assert (storage / "job/result.json").is_file()
    # A job that fails: the folder holds another recipe's run.
    failed = submit(head, "train.lr=0.3", f"storage={storage}", "name=job")
    assert failed.returncode == 2
    assert "these keys differ: train.lr" in " ".join(failed.stdout.split())


@pytest.mark.slow
def test_without_the_token_the_cluster_refuses_in_one_sentence(head, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    command = [sys.executable, "-m", "suptickets_ray.cli", "train", *TINY, f"storage={tmp_path}", "--submit", head[0]]
    done = subprocess.run(
        command, env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "the cluster requires its token" in " ".join(done.stderr.split())
    assert not (tmp_path / "digits").exists()


@pytest.mark.slow
@pytest.mark.parametrize("has_token", [True, False])
def test_rays_own_command_submits_a_job_with_the_token_alone(head, shipped, tmp_path, has_token):
    """The job finds the shipped run done, in less time than it takes to train one."""
    storage, _ = shipped
    (tmp_path / "work").mkdir()
    (tmp_path / "work/my_recipe.yaml").write_text(to_yaml(load_config(None, TINY)))
    home = head[1] if has_token else tmp_path
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    ray = Path(sys.executable).parent / "ray"
    job = ["suptickets", "train", "my_recipe.yaml", f"storage={storage}", "name=job", "cluster.address=auto"]
    done = subprocess.run(
        [ray, "job", "submit", "--address", head[0], "--working-dir", tmp_path / "work", "--", *job],
        env={**environment, "HOME": str(home), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode == 0) == has_token, done.stdout + done.stderr
    assert ("This run is already complete." in done.stdout) == has_token


class BreakingClient:
    """A job of which the stream breaks off, in the middle or in silence, before it has ended."""

    def __init__(self, streams, statuses, code=0):
        self.streams, self.statuses, self.code = list(streams), list(statuses), code

    async def tail_job_logs(self, job_id):
        for piece in self.streams.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def get_job_info(self, job_id):
        status = self.statuses.pop(0)
        return SimpleNamespace(status=status, driver_exit_code=self.code if status in ("SUCCEEDED", "FAILED") else None)


BROKEN = RuntimeError("the connection broke off")


@pytest.mark.parametrize(
    ("streams", "statuses", "code"),
    [
        ([["ab", "cd", "ef"]], ["SUCCEEDED"], 0),
        ([["ab", BROKEN], ["ab", "cd", "ef"]], ["FAILED"], 3),
        ([["ab", "c"], ["abcd"], [BROKEN], ["abcdef"]], ["RUNNING", "RUNNING", "FAILED"], 2),
        ([["abcdef"]], ["STOPPED"], 1),
    ],
)
def test_a_stream_that_breaks_off_is_taken_up_again_and_the_jobs_own_end_counts(streams, statuses, code):
    shown = []
    client = BreakingClient(streams, statuses, code)
    assert watch_job(client, "job", shown.append, sleep=lambda seconds: None) == code
    assert "".join(shown) == "abcdef"


def test_a_cluster_that_never_answers_again_is_said_not_to_be_the_jobs_end():
    client = BreakingClient([[BROKEN]] * 10, [])
    with pytest.raises(RuntimeError, match="Cannot follow job raysubmit_1: .* ray job logs --follow raysubmit_1"):
        watch_job(client, "raysubmit_1", print, sleep=lambda seconds: None)


def test_what_cannot_be_submitted_is_one_sentence(tmp_path, capsys):
    assert main(["train", *TINY, f"storage={tmp_path}", "cluster.address=a:1", "--submit", "http://127.0.0.1:1"]) == 2
    assert "cluster.address has no effect with --submit" in " ".join(capsys.readouterr().err.split())
    assert main(["train", *TINY, "--submit", "http://127.0.0.1:1"]) == 2
    assert "storage must be an absolute path that all machines share" in " ".join(capsys.readouterr().err.split())
    assert main(["train", *TINY, f"storage={tmp_path}", "--no-wait"]) == 2
    assert "--no-wait has no effect without --submit" in capsys.readouterr().err
    assert main(["train", *TINY, f"storage={tmp_path}", "--submit", "http://127.0.0.1:1"]) == 2
    assert "must be the address of a Ray dashboard that answers" in " ".join(capsys.readouterr().err.split())


def test_modules_of_ones_own_are_found_in_a_recipe(tmp_path, monkeypatch):
    (tmp_path / "own_scores.py").write_text("def score(layer):\n    return layer.weight.abs()\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = load_config(None, ["method.grow=own_scores:score", "storage=s3://bucket/x"])
    assert set(user_modules(to_dict(config))) == {"own_scores"}
