"""One process at a time works on a run in an object store: decided by what is read there, without a clock."""

import json
import os
import socket
import threading

import pytest

from suptickets_ray.distributed.cluster import run_lock as lock
from suptickets_ray.distributed.cluster.lock_holder import read_holder, running_holder
from suptickets_ray.tickets.store import RunStore

OWN = lock.new_heartbeat()
HERE, NOBODY = socket.gethostname(), 2**22 + 1
"""This machine, and the number of a process that does not run."""


class Storage:
    """Holds the content of `LOCK_FILE` at each poll, in turn; the last one stays. A poll follows a sleep."""

    def __init__(self, *seen):
        self.seen, self.polls = list(seen), 0

    def exists(self, path):
        return self.seen[0] is not None

    def read(self, path):
        return self.seen[0]

    def sleep(self, seconds):
        self.polls += 1
        if len(self.seen) > 1:
            self.seen.pop(0)


def sign(beat, host="elsewhere", pid=7, machine=OWN["machine"]):
    return json.dumps({"holder": "x", "host": host, "pid": pid, "machine": machine, "beat": beat}).encode()


def wait(storage, polls=5):
    lock.wait_until_free(storage, "s3://bucket/run", polls=polls, sleep=storage.sleep)
    return storage.polls


def test_nobody_there_is_no_reason_to_wait():
    assert wait(Storage(None)) == 0


def test_a_holder_that_ended_on_this_machine_is_no_reason_to_wait():
    assert wait(Storage(sign(0, HERE, NOBODY))) == 0


def test_a_holder_in_another_container_or_on_a_cloned_machine_is_waited_for():
    assert OWN["machine"]
    for other in ("another boot pid:[1]", "", None):
        assert wait(Storage(sign(0, HERE, NOBODY, other))) == 5


def test_whoever_waits_is_told_for_whom():
    said = []
    storage = Storage(sign(3))
    lock.wait_until_free(storage, "s3://b/run", polls=5, sleep=storage.sleep, on_wait=said.append)
    assert said == ["waiting up to 5 s for a heartbeat: process 7 on elsewhere held this run"]


def test_a_holder_that_gives_no_sign_at_any_look_is_dead():
    assert wait(Storage(sign(3))) == 5


def test_a_holder_that_gives_a_sign_at_the_last_look_is_alive():
    with pytest.raises(ValueError, match="Cannot lock the run in .*: process 7 on elsewhere works on it"):
        wait(Storage(*[sign(3)] * 5, sign(4)))


def test_a_holder_on_this_machine_that_lives_is_waited_for():
    with pytest.raises(ValueError, match=f"process {os.getpid()} on {HERE} works on it"):
        wait(Storage(sign(0, HERE, os.getpid()), sign(1, HERE, os.getpid())))


def test_a_holder_that_leaves_frees_the_run():
    assert wait(Storage(sign(3), sign(3), None)) == 2


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"host": "elsewhere"}', b'{"pid": 3, "host": 4}'])
def test_a_sign_that_cannot_be_read_is_that_of_somebody(broken):
    assert wait(Storage(broken)) == 5
    with pytest.raises(ValueError, match="Cannot lock the run"):
        wait(Storage(broken, sign(1)))
    with pytest.raises(ValueError, match="Cannot lock the run"):
        wait(Storage(sign(1), broken))


def test_a_file_system_without_locks_is_no_busy_run(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with (
        pytest.raises(ValueError, match="on a file system that supports file locks; .* Function not implemented"),
        lock.only_process(str(tmp_path / "run")),
    ):
        pass


def claims(store, rival=None):
    lock.claim(store, "run", OWN, sleep=lambda seconds: rival and lock.write_heartbeat(store, rival, 0))


def test_of_two_that_claim_a_free_run_at_once_the_one_that_wrote_last_has_it(tmp_path):
    store = RunStore(str(tmp_path))
    with pytest.raises(ValueError, match="Cannot lock the run"):
        claims(store, rival=lock.new_heartbeat())
    claims(store)
    claims(store, rival=OWN)


@pytest.fixture
def in_store(tmp_path, monkeypatch):
    """A run whose holder gives signs all the time; and its files."""
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.0)
    path = f"file://{tmp_path}/run"
    return path, RunStore(path)


def test_a_holder_that_was_taken_for_dead_finds_that_out_and_stops(in_store):
    path, store = in_store
    rival = lock.new_heartbeat()
    words = f"Cannot continue the run in .*: process {rival['pid']} on {HERE} has taken it over"
    with pytest.raises(RuntimeError, match=words), lock.only_process(path):
        for count in range(600):  # one of the rival's signs ends it; a single one could be overwritten
            lock.write_heartbeat(store, rival, count)
            threading.Event().wait(0.05)
    assert read_holder(store)["holder"] == rival["holder"]  # and nobody takes that away


def test_whoever_ends_before_it_finds_that_out_leaves_the_rivals_sign(in_store, monkeypatch):
    path, store = in_store
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 60.0)
    rival = lock.new_heartbeat()
    with lock.only_process(path):
        lock.write_heartbeat(store, rival, 0)
    assert read_holder(store)["holder"] == rival["holder"]


def test_an_interrupt_by_a_person_stays_one(in_store):
    path, store = in_store
    with pytest.raises(KeyboardInterrupt), lock.only_process(path):
        raise KeyboardInterrupt
    assert not store.exists(lock.LOCK_FILE)


def test_a_sign_that_somebody_removed_is_given_anew(in_store):
    path, store = in_store
    with lock.only_process(path):
        store.delete(lock.LOCK_FILE)
        for _ in range(3000):
            if store.exists(lock.LOCK_FILE):
                break
            threading.Event().wait(0.01)
        assert store.exists(lock.LOCK_FILE)


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_a_lock_that_is_not_a_regular_file_is_refused_and_left_as_it_is(tmp_path, kind):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    file = run / ".lock"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(other)
    if kind == "link":
        other.write_text("kept")
    refused = pytest.raises(ValueError, match=r"\.lock must be a regular file of this user; .* Remove it")
    with refused, lock.only_process(str(run)):
        pass
    with refused:
        lock.check_free(str(run))
    assert not other.exists() if kind != "link" else other.read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_lock_of_another_user_is_refused(tmp_path):
    (tmp_path / ".lock").touch()
    os.chown(tmp_path / ".lock", 65534, -1)
    with (
        pytest.raises(ValueError, match=r"\.lock must be a regular file of this user"),
        lock.only_process(str(tmp_path)),
    ):
        pass


def test_a_busy_run_is_found_without_taking_it(tmp_path):
    lock.check_free(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    with (
        lock.only_process(str(tmp_path)),
        pytest.raises(ValueError, match=f"Cannot lock .* process {os.getpid()} on {HERE} works"),
    ):
        lock.check_free(str(tmp_path))
    lock.check_free(str(tmp_path))


def test_the_lock_file_names_its_holder_while_it_runs(tmp_path):
    assert running_holder(str(tmp_path)) is None
    with lock.only_process(str(tmp_path)):
        assert running_holder(str(tmp_path))["pid"] == os.getpid()
    assert running_holder(str(tmp_path)) is None


def test_a_holder_that_was_killed_is_not_running(tmp_path):
    for machine in (OWN["machine"], "of another boot"):
        (tmp_path / ".lock").write_bytes(sign(0, HERE, NOBODY, machine))
        assert running_holder(str(tmp_path)) is None


def test_a_holder_on_another_machine_runs_while_the_file_is_locked(tmp_path):
    with lock.only_process(str(tmp_path)):
        (tmp_path / ".lock").write_bytes(sign(0, machine="of another boot"))
        assert running_holder(str(tmp_path))["host"] == "elsewhere"
    (tmp_path / ".lock").write_bytes(sign(0, machine="of another boot"))
    assert running_holder(str(tmp_path)) is None


def test_a_holder_in_an_object_store_runs_while_its_heartbeat_is_young(tmp_path):
    (tmp_path / ".lock").write_bytes(sign(3))
    assert running_holder(f"file://{tmp_path}", heartbeat_age=12.0)["host"] == "elsewhere"
    assert running_holder(f"file://{tmp_path}", heartbeat_age=120.0) is None


def test_a_folder_that_was_removed_meanwhile_is_not_locked(tmp_path, monkeypatch):
    flock = lock.fcntl.flock

    def removed_first(file, operation):
        (tmp_path / ".lock").unlink(missing_ok=True)
        return flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", removed_first)
    with pytest.raises(ValueError, match="Cannot lock the run"), lock.only_process(str(tmp_path)):
        pass
