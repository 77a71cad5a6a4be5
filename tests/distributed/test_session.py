import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from suptickets_ray import load_config, train
from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster import session
from suptickets_ray.distributed.cluster.capacity import worker_capacity, worker_labels
from suptickets_ray.distributed.cluster.local_ray import remove_old_sessions
from suptickets_ray.distributed.cluster.session import (
    _local_cpus,
    _quick_start,
    check_address,
    cluster_address,
    ray_session,
)
from suptickets_ray.distributed.cluster.token import ensure_token, requires_token
from suptickets_ray.distributed.pipeline import run
from suptickets_ray.progress.events import Warned
from suptickets_ray.recipes.resolve import resolve
from suptickets_ray.tickets.store import RunStore


def node(node_id="n", alive=True, head=False, **resources):
    resources |= {"node:__internal_head__": 1.0} if head else {}
    return {"NodeID": node_id, "Alive": alive, "Resources": resources}


def test_a_head_that_is_kept_free_and_machines_that_are_gone_have_no_room(monkeypatch):
    nodes = [node("h", head=True, CPU=8.0), node("a", CPU=2.0), node("b", alive=False, CPU=4.0)]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert worker_capacity(ClusterConfig(), {"CPU": 1.0}) == 10
    assert worker_capacity(ClusterConfig(exclude_head_node=True), {"CPU": 1.0}) == 2
    assert worker_labels(ClusterConfig()) == {}
    assert worker_labels(ClusterConfig(exclude_head_node=True)) == {"ray.io/node-id": "!h"}


def test_the_recipes_address_comes_before_the_environments_and_none_means_local(monkeypatch):
    assert cluster_address(ClusterConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(ClusterConfig()) == "10.0.0.1:6379"
    assert cluster_address(ClusterConfig(address="10.0.0.2:6379")) == "10.0.0.2:6379"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert cluster_address(ClusterConfig()) is None


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given in (address, f"ray://{address}"):
        with pytest.raises(ValueError, match=f"cluster.address must be a Ray cluster that answers; got '{given}'"):
            check_address(ClusterConfig(address=given))


def test_an_address_where_somebody_listens_or_that_only_ray_understands_passes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(ClusterConfig(address=f"127.0.0.1:{server.getsockname()[1]}"))
    check_address(ClusterConfig(address="auto"))
    check_address(ClusterConfig())


def test_a_local_ray_is_given_the_cpus_that_were_asked_for(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert _local_cpus(ClusterConfig()) == 2
    assert _local_cpus(ClusterConfig(num_explorers=3)) == 3
    assert _local_cpus(ClusterConfig(num_workers=4, cpus_per_worker=2)) == 8


def test_a_local_ray_starts_quickly_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "3")
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
    with _quick_start():
        assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "3"
        assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
    assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in os.environ


@pytest.mark.parametrize(
    ("error", "dead", "is_lost"),
    [
        (RuntimeError("the node timed out during startup"), None, True),
        (ValueError("num_cpus must be positive"), None, False),
        (RuntimeError("a cycle failed"), [], False),
        (RuntimeError("the actor died"), ["raylet"], True),
    ],
)
def test_a_local_ray_that_failed_is_reported_to_the_supervisor(monkeypatch, error, dead, is_lost):
    reports = []
    monkeypatch.setattr(session, "report_local_ray", lambda: reports.append("local"))
    monkeypatch.setattr(session, "report_lost_ray", lambda: reports.append("lost"))
    node = None if dead is None else SimpleNamespace(dead_processes=lambda: dead)
    monkeypatch.setattr("ray._private.worker._global_node", node)
    with pytest.raises(type(error)), session._report_losses():
        raise error
    assert reports == ["local", *(["lost"] if is_lost else [])]


@pytest.mark.ray
def test_another_cluster_than_the_one_this_process_is_connected_to_is_refused(ray_address):
    message = f"cluster.address must be {ray_address}, which this process is connected to"
    with pytest.raises(ValueError, match=message), ray_session(ClusterConfig(address="127.0.0.1:1")):
        pass
    with ray_session(ClusterConfig(address=ray_address)):
        pass


@pytest.mark.parametrize(("more", "warned"), [([], True), (["cluster.superposer_gpus=0.1"], False)])
def test_a_superposer_that_is_left_on_a_cpu_by_a_recipe_for_gpus_is_warned_about(tmp_path, more, warned):
    nobody = ["cluster.address=127.0.0.1:1", f"storage={tmp_path}", "cluster.gpus_per_worker=1"]
    events = []
    with pytest.raises(ValueError, match="must be a Ray cluster that answers"):
        train(load_config(None, [*nobody, *more]), events.append)
    assert any("on one CPU thread" in event.text for event in events if isinstance(event, Warned)) == warned


def test_a_ray_without_a_token_is_recognised(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not requires_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 40)
    assert requires_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert not requires_token()


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home of this test's own, with nothing said about tokens."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_token_is_readable_for_its_owner_alone(home):
    old = os.umask(0)
    try:
        ensure_token()
    finally:
        os.umask(old)
    token = home / ".ray/auth_token"
    assert len(token.read_text()) == 64
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_token_that_ray_left_open_is_closed_and_kept(home):
    (home / ".ray").mkdir()
    token = home / ".ray/auth_token"
    token.write_text("a" * 64)
    token.chmod(0o644)
    ensure_token()
    assert token.read_text() == "a" * 64
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "a"), ("RAY_AUTH_TOKEN_PATH", "/a")]
)
def test_no_token_is_made_where_none_or_another_is_meant(home, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    ensure_token()
    assert not (home / ".ray").exists()


JOIN = """
import json, os, sys
from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.session import ray_session
from suptickets_ray.progress.events import Warned
import ray
events = []
try:
    with ray_session(ClusterConfig(address=sys.argv[1]), events.append):
        probe = ray.remote(lambda: 1)
        assert ray.get(probe.remote(), timeout=120) == 1
    said = None
except ValueError as error:
    said = str(error)
print("JOINED " + json.dumps({"said": said, "warned": [e.text for e in events if isinstance(e, Warned)]}))
"""


@pytest.fixture(scope="module")
def head_of(free_ports):
    """Starts heads that ask for a token, or let in anybody, once each; gives their addresses and homes."""
    heads, running, folders = {}, [], []

    def start(mode):
        if mode in heads:
            return heads[mode]
        temp_dir = Path(tempfile.mkdtemp(prefix="st-"))
        folders.append(temp_dir)
        (temp_dir / "home/.ray").mkdir(parents=True)
        if mode == "token":
            (temp_dir / "home/.ray/auth_token").write_text("a" * 40)
        port, client, agent, agent_grpc, runtime, metrics, dashboard = free_ports(7)
        options = [f"--port={port}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        options += [f"--dashboard-agent-grpc-port={agent_grpc}", f"--runtime-env-agent-port={runtime}"]
        options += [f"--metrics-export-port={metrics}", f"--dashboard-port={dashboard}", "--num-cpus=1"]
        options += [f"--temp-dir={temp_dir}/ray", "--object-store-memory=100000000", "--disable-usage-stats"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
        ray = str(Path(sys.executable).parent / "ray")
        with (temp_dir / "out").open("w") as out:
            process = subprocess.Popen(
                [ray, "start", "--head", "--block", *options],
                env={**environment, "HOME": str(temp_dir / "home"), "RAY_AUTH_MODE": mode, "RAY_TMPDIR": str(temp_dir)},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.append(process)
        deadline = time.monotonic() + 180
        # Its last word once all of it runs: its port is open long before.
        while "Ray runtime started" not in (temp_dir / "out").read_text():
            assert process.poll() is None, (temp_dir / "out").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        heads[mode] = f"127.0.0.1:{port}", temp_dir / "home"
        return heads[mode]

    yield start
    for process in running:
        process.terminate()  # --block: it ends what it started
    for process in running:
        process.wait(60)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def join(address, home, **environment):
    """In a process of its own: Ray's client keeps the first token that a process has shown."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env={**clean, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("JOINED ")] or [done.stderr[-3000:]]
    return json.loads(line.removeprefix("JOINED "))


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_is_shown_it(head_of, tmp_path):
    address, home = head_of("token")
    assert join(address, home) == {"said": None, "warned": []}
    without = join(address, tmp_path)
    assert "it requires a token, and this process has none" in without["said"]
    assert "disables tokens" in join(address, home, RAY_AUTH_MODE="disabled")["said"]
    other = join(address, tmp_path, RAY_AUTH_TOKEN="b" * 40)
    assert "its token differs from this process's" in other["said"]


@pytest.mark.ray
@pytest.mark.slow
def test_an_open_cluster_is_joined_with_a_warning_whether_or_not_a_token_is_at_hand(head_of, tmp_path):
    address, _ = head_of("disabled")
    (tmp_path / ".ray").mkdir()
    for has_token in (False, True):
        if has_token:
            (tmp_path / ".ray/auth_token").write_text("a" * 40)
        joined = join(address, tmp_path)
        assert joined["said"] is None
        assert len(joined["warned"]) == 1
        assert "is not authenticated" in joined["warned"][0]
    assert "it requires no token" in join(address, tmp_path, RAY_AUTH_MODE="token")["said"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"superposer_gpus": 1.0}, "cluster.superposer_gpus must fit this machine's 0 GPUs"),
        ({"gpus_per_worker": 1.0}, "cluster.gpus_per_worker must fit this machine's 0 GPUs"),
        ({"memory_per_worker_gb": 90000.0}, "cluster.memory_per_worker_gb must fit this machine's"),
        ({"worker_resources": {"spot": 1.0}}, "cluster.worker_resources must name resources of a cluster"),
        ({"explorer_resources": {"spot": 1.0}}, "cluster.explorer_resources must name resources of a cluster"),
        ({"exclude_head_node": True}, "cluster.exclude_head_node must be false for a local Ray"),
    ],
)
def test_what_this_machine_lacks_is_refused_before_a_local_ray_starts(monkeypatch, asked, message):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ValueError, match=message):
        check_address(ClusterConfig(**asked))


def test_folders_that_ray_cannot_use_are_refused_by_their_variable(monkeypatch, tmp_path):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    check_address(ClusterConfig())
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    with pytest.raises(ValueError, match="RAY_TMPDIR must be a path of at most 39 bytes"):
        check_address(ClusterConfig())
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    with pytest.raises(ValueError, match="RAY_TMPDIR must be a folder that this user can write; got '/nowhere'"):
        check_address(ClusterConfig())
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(ValueError, match="HOME must be a folder that this user can write; got '/nowhere'"):
        check_address(ClusterConfig())


LISTENING = """
import os, sys
from pathlib import Path
from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.session import ray_session
import ray
with ray_session(ClusterConfig()):
    @ray.remote
    def work():
        return 1
    ray.get([work.remote() for _ in range(2)])
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.environ["MARK"].encode() in (process / "environ").read_bytes():
                inodes |= {os.readlink(fd) for fd in (process / "fd").iterdir()}
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                print("LISTENS", fields[1].partition(":")[0])
assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_listens_on_loopback_only():
    environment = {**os.environ, "MARK": f"listening-{os.getpid()}"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    places = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("LISTENS")]
    assert len(places) > 4
    assert set(places) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_old_sessions_of_our_own_are_removed_and_no_others(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    day, ended = 24 * 3600, 2**22 + 1
    sessions = {
        "old": (f"session_2026-01-01_00-00-00_000000_{ended}", 2 * day, True),
        "new": (f"session_2026-01-02_00-00-00_000000_{ended}", day / 2, True),
        "alive": (f"session_2026-01-01_00-00-00_000000_{os.getpid()}", 2 * day, True),
        "others": (f"session_2026-01-01_00-00-01_000000_{ended}", 2 * day, False),
    }
    for name, age, is_own in sessions.values():
        folder = tmp_path / "ray" / name
        folder.mkdir(parents=True)
        if is_own:
            (folder / "of-suptickets").touch()
            os.utime(folder / "of-suptickets", (time.time() - age, time.time() - age))
    assert remove_old_sessions(time.time()) == 1
    left = {path.name for path in (tmp_path / "ray").iterdir()}
    assert left == {name for key, (name, _, _) in sessions.items() if key != "old"}


def test_a_validation_set_too_small_for_the_gate_is_warned_about_before_ray_starts(tmp_path):
    events = []
    config = resolve(load_config(None, ["superposition.gate_tolerance=0.001", f"storage={tmp_path}"]))
    run._prepare(config, RunStore(str(tmp_path / "digits")), events.append)
    assert any("one of the 297 validation examples is" in event.text for event in events if isinstance(event, Warned))
