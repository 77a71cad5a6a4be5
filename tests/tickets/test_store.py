import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from suptickets_ray import Ticket
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket_store import TicketStore


def ticket(value):
    return Ticket({"w": torch.as_tensor(value).reshape(-1)}, {}, {})


@pytest.mark.parametrize("path", ["/tmp/" + 300 * "a", "/tmp/a\0b"])
def test_a_path_that_cannot_exist_is_a_configuration_error(path):
    with pytest.raises(ValueError, match="storage must be a path that can exist; got"):
        RunStore(path)


def test_a_folder_that_cannot_be_written_is_found_early(tmp_path):
    (tmp_path / "file").touch()
    RunStore(str(tmp_path / "new" / "run")).check(writes=True)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="storage must be a folder that can be written; got .*file"):
        RunStore(str(tmp_path / "file" / "run")).check(writes=True)


def test_tickets_are_found_again_by_chain_and_cycle(tmp_path):
    store = TicketStore(RunStore(str(tmp_path / "run")))
    assert store.list() == []
    store.put(ticket(1.0), 0, 2)
    store.put(ticket(2.0), 11, 0)
    assert store.list() == [(0, 2), (11, 0)]
    assert store.get(11, 0).digest == ticket(2.0).digest
    assert (tmp_path / "run/tickets/chain-011/cycle-000.arrow").is_file()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    store = RunStore(str(tmp_path))
    store.write("a/file", b"old")

    class NoSpace:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def write(self, content):
            self.stream.write(content[:1])
            raise OSError("no space left on device")

        def __exit__(self, *error):
            self.stream.close()

    class Full:
        def __init__(self, filesystem):
            self.filesystem = filesystem

        def __getattr__(self, name):
            return getattr(self.filesystem, name)

        def open_output_stream(self, path):
            return NoSpace(self.filesystem.open_output_stream(path))

    monkeypatch.setattr(store, "_filesystem", Full(store._filesystem))
    with pytest.raises(OSError, match="no space left"):
        store.write("a/file", b"new")
    assert store.read("a/file") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_half_written_files_of_a_killed_process_are_not_listed(tmp_path):
    store = RunStore(str(tmp_path))
    TicketStore(store).put(ticket(1.0), 0, 0)
    (tmp_path / "tickets/chain-000/cycle-001.arrow.123.tmp").write_bytes(b"half")
    assert TicketStore(store).list() == [(0, 0)]
    store.remove_temporaries()
    assert [path.name for path in (tmp_path / "tickets/chain-000").iterdir()] == ["cycle-000.arrow"]


def test_a_damaged_ticket_is_named(tmp_path):
    store = TicketStore(RunStore(str(tmp_path)))
    store.put(ticket(1.0), 0, 0)
    path = tmp_path / "tickets/chain-000/cycle-000.arrow"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"chain-000/cycle-000.arrow: .* damaged"):
        store.get(0, 0)


def test_a_missing_file_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        TicketStore(RunStore(str(tmp_path))).get(0, 0)


def test_a_relative_path_is_refused():
    with pytest.raises(ValueError, match="storage must be an absolute path or a URI"):
        RunStore("runs/a")


def test_removing_a_folder_removes_all_in_it_and_tolerates_none(tmp_path):
    store = RunStore(str(tmp_path))
    store.write("a/b/c", b"x")
    store.remove_folder("a")
    store.remove_folder("a")
    assert not store.exists("a/b/c")


def test_a_ticket_under_another_name_is_found(tmp_path):
    tickets = TicketStore(RunStore(str(tmp_path)))
    tickets.put(Ticket({"w": torch.ones(1)}, {}, {"chain": 1, "cycle": 0}), 0, 0)
    assert "it is of chain 1, cycle 0" in tickets.verify()[0, 0]


def test_files_that_only_look_like_tickets_are_not_listed(tmp_path):
    store = RunStore(str(tmp_path))
    store.write("tickets/chain-000/cycle-1.arrow", b"")
    assert TicketStore(store).list() == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own with room for 256 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_an_error_and_loses_no_earlier_ticket(small_disk):
    store = TicketStore(RunStore(str(small_disk)))
    kept = []
    with pytest.raises(OSError, match="No space left"):
        for cycle in range(100):
            store.put(ticket(torch.randn(10_000)), 0, cycle)
            kept.append((0, cycle))
    assert len(kept) >= 2
    assert store.list() == kept
    assert store.verify() == {}
    assert not list(small_disk.rglob("*.tmp"))


@pytest.fixture
def foreign_folder():
    """A folder that this process may read and not write; where it is root, it plays another user meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="st-"))
    folder.chmod(0o755)
    store = RunStore(str(folder))
    TicketStore(store).put(ticket(1.0), 0, 0)
    folders = [folder, folder / "tickets", folder / "tickets/chain-000"]
    for one in folders:
        one.chmod(0o555)
    (folder / TicketStore.path(0, 0)).chmod(0o444)
    user, nobody = os.geteuid(), 65534
    if user == 0:
        os.seteuid(nobody)
    yield folder
    os.seteuid(user)
    for one in folders:
        one.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_written_is_an_error_and_loses_no_earlier_ticket(foreign_folder):
    store = TicketStore(RunStore(str(foreign_folder)))
    for chain, cycle in ((0, 0), (0, 1), (1, 0)):  # over the one that is there, beside it, and in a new folder
        with pytest.raises(OSError, match="Permission denied") as refused:
            store.put(ticket(2.0), chain, cycle)
        assert refused.value.errno == errno.EACCES
    assert store.list() == [(0, 0)]
    assert store.verify() == {}
    assert store.get(0, 0).digest == ticket(1.0).digest
    assert not list(foreign_folder.rglob("*.tmp"))
