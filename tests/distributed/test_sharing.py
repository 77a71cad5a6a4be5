"""Which machines are asked whether they see the storage, and what their answers mean; faults.py asks a real one."""

import pytest

from suptickets_ray.distributed.cluster import shared_storage as sharing


class FakeRay:
    """Nodes that come, and answers of those that were asked; `answers[node]` is None while it is too busy."""

    def __init__(self, monkeypatch):
        self.nodes, self.answers, self.asked = ["here"], {}, []
        monkeypatch.setattr(sharing.ray, "nodes", lambda: [self._node(name) for name in self.nodes])
        monkeypatch.setattr(sharing.ray, "get_runtime_context", lambda: self)
        monkeypatch.setattr(sharing.ray, "wait", self._wait)
        monkeypatch.setattr(sharing, "_probe", self._probe)
        monkeypatch.setattr(sharing, "_is_blind", lambda node: self.answers[node] is False)

    def get_node_id(self):
        return "here"

    def _node(self, name):
        return {"NodeID": name, "Alive": True, "NodeManagerHostname": f"host-{name}"}

    def _probe(self, file, nodes):
        assert file.is_file()
        self.asked.append(sorted(nodes))
        return dict(nodes)

    def _wait(self, asked, num_returns, timeout):
        done = [node for node in asked if self.answers.get(node) is not None]
        return done, [node for node in asked if node not in done]


@pytest.fixture
def cluster(monkeypatch):
    return FakeRay(monkeypatch)


def test_a_machine_that_does_not_see_the_folder_is_named_before_anything_starts(cluster, tmp_path):
    cluster.nodes += ["a", "b", "busy"]
    cluster.answers = {"a": True, "b": False}
    with pytest.raises(
        ValueError, match=f"folder that all machines share.*; got {tmp_path}, which host-b does not see"
    ):
        sharing.check_shared(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    cluster.answers = {"a": True, "b": True}
    sharing.check_shared(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_uri_and_one_machine_alone_need_no_question(cluster, tmp_path):
    sharing.check_shared(str(tmp_path))
    cluster.nodes += ["a"]
    sharing.check_shared("s3://bucket/runs")
    assert cluster.asked == []


def test_machines_that_join_later_are_asked_once_each_and_without_waiting(cluster, tmp_path):
    machines = sharing.StorageProbe(str(tmp_path))
    machines.poll()
    cluster.nodes += ["a"]
    machines.poll()
    machines.poll()
    assert cluster.asked == [["a"]]
    assert len(list(tmp_path.iterdir())) == 1  # until it has answered
    cluster.answers["a"] = True
    machines.poll()
    assert list(tmp_path.iterdir()) == []
    cluster.nodes += ["b"]
    cluster.answers["b"] = False
    with pytest.raises(RuntimeError, match="which host-b does not see"):
        machines.poll()
    assert cluster.asked == [["a"], ["b"]]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nothing_has_been_written_to_yet_is_made_to_ask_about_it(cluster, tmp_path):
    # An exploration of a search: its first ticket would make it, and machines are asked before.
    cluster.nodes += ["a"]
    machines = sharing.StorageProbe(str(tmp_path / "explorations" / "key"))
    machines.poll()
    assert cluster.asked == [["a"]]
