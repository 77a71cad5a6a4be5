"""Explorers that start, die and drain, played without a cluster: an answer is what Ray would raise, or give."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster import polling
from suptickets_ray.distributed.pipeline import explorer_pool
from suptickets_ray.distributed.pipeline.explorer_pool import CycleFailed, CycleFinished, CycleLost, ExplorerPool


class Answer:
    """An object reference whose result the test sets; until then it is pending."""

    def __init__(self, result=None):
        self.result = result


class FakeExplorer:
    def __init__(self, name):
        self.name, self.pings, self.cycles = name, [], []
        self.node = SimpleNamespace(remote=self._ping)
        self.run_cycle = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._run))

    def _ping(self):
        self.pings.append(Answer())
        return self.pings[-1]

    def _run(self, *arguments):
        self.cycles.append(Answer())
        return "table", "state", "logits", self.cycles[-1]


class Cluster:
    """What the pool sees of Ray."""

    def __init__(self):
        self.started, self.killed, self.capacity, self.draining = [], [], 2, frozenset()

    def options(self, **options):
        return self

    def remote(self, context):
        self.started.append(FakeExplorer(f"explorer {len(self.started)}"))
        return self.started[-1]

    def wait(self, answers, **options):
        return [answer for answer in answers if answer.result is not None][:1], []

    def get(self, answer):
        if isinstance(answer.result, Exception):
            raise answer.result
        return answer.result


@pytest.fixture
def cluster(monkeypatch):
    cluster = Cluster()
    monkeypatch.setattr(explorer_pool, "Explorer", cluster)
    monkeypatch.setattr(explorer_pool.ray, "wait", cluster.wait)
    monkeypatch.setattr(explorer_pool.ray, "get", cluster.get)
    monkeypatch.setattr(explorer_pool.ray, "kill", cluster.killed.append)
    monkeypatch.setattr(explorer_pool.ray.util, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(explorer_pool, "num_explorers_that_fit", lambda config, chains: min(cluster.capacity, chains))
    monkeypatch.setattr(explorer_pool, "draining_nodes", lambda: cluster.draining)
    monkeypatch.setattr(explorer_pool, "worker_labels", lambda config: {})
    monkeypatch.setattr(explorer_pool, "explorer_shortfall", lambda config, draining: None)
    monkeypatch.setattr(polling, "CLUSTER_POLL_SECONDS", 0.0)
    return cluster


@pytest.fixture
def pool(cluster):
    config = SimpleNamespace(cluster=ClusterConfig())
    pool = ExplorerPool(SimpleNamespace(config=config, monitor=None, run_path="s3://bucket/run"), num_chains=3)
    pool.open(num_unfinished=3)
    return pool


def answers(pool, answer, result):
    """Lets Ray answer, and returns what the pool makes of it."""
    answer.result = result
    (taken,) = pool.wait(0)
    assert taken is answer
    return pool.take(taken)


def ready(pool, cluster, nodes=("a", "b")):
    for explorer, node in zip(cluster.started, nodes, strict=True):
        assert answers(pool, explorer.pings[0], node) is None


def test_as_many_explorers_start_as_fit_and_each_is_idle_once_it_answers(pool, cluster):
    assert len(cluster.started) == pool.peak_size == 2
    assert not pool.has_idle
    ready(pool, cluster)
    assert pool.has_idle
    cluster.capacity = 5
    pool.poll(num_unfinished=3)  # a machine has joined; more explorers than chains are not needed
    assert len(cluster.started) == pool.peak_size == 3


def test_no_explorer_starts_without_work(cluster):
    context = SimpleNamespace(config=SimpleNamespace(cluster=ClusterConfig()), monitor=None, run_path="s3://bucket/run")
    ExplorerPool(context, num_chains=3).open(num_unfinished=0)
    assert not cluster.started


def test_a_finished_cycle_makes_its_explorer_idle(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)
    pool.run_cycle("start", 2, 0, again=False)
    assert (pool.has_idle, pool.busy_chains) == (False, [1, 2])
    assert answers(pool, cluster.started[1].cycles[0], True) == CycleFinished(1, 0, "table", "state", "logits")
    assert (pool.has_idle, pool.busy_chains) == (True, [2])


def test_an_explorer_whose_gpu_fails_is_killed_and_replaced(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)
    fault = RayTaskError("run_cycle", "traceback", RuntimeError("CUDA error: device-side assert triggered"))
    end = answers(pool, cluster.started[1].cycles[0], fault)
    assert isinstance(end, CycleLost)
    assert (end.chain, end.cycle, end.was_preempted) == (1, 0, False)
    assert cluster.killed == [cluster.started[1]]
    assert len(cluster.started) == 3


def test_a_dead_explorer_is_replaced_and_idle_ones_are_pinged(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)
    end = answers(pool, cluster.started[1].cycles[0], ActorDiedError())
    assert isinstance(end, CycleLost)
    assert (end.chain, end.cycle, end.was_preempted) == (1, 0, False)
    assert len(cluster.started) == 3
    assert not pool.has_idle
    assert answers(pool, cluster.started[0].pings[1], "a") is None
    assert pool.has_idle


def test_an_idle_explorer_that_died_unnoticed_is_replaced(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)
    answers(pool, cluster.started[1].cycles[0], ActorDiedError())
    answers(pool, cluster.started[0].pings[1], ActorDiedError())
    assert len(cluster.started) == 4
    assert not pool.has_idle


def test_an_explorer_whose_input_was_lost_is_kept(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)
    end = answers(pool, cluster.started[1].cycles[0], ObjectLostError("00", None, ""))
    assert isinstance(end, CycleLost)
    assert len(cluster.started) == 2
    assert [len(explorer.pings) for explorer in cluster.started] == [2, 2]


def test_a_loss_on_a_draining_machine_is_a_preemption(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)
    cluster.draining = frozenset({"b"})
    pool.poll(num_unfinished=3)
    assert answers(pool, cluster.started[1].cycles[0], ActorDiedError()).was_preempted


def test_explorers_on_draining_machines_retire_at_once_if_idle_and_else_after_their_cycle(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)  # on b
    cluster.draining, cluster.capacity = frozenset({"a", "b"}), 1
    pool.poll(num_unfinished=3)
    assert cluster.killed == [cluster.started[0]]
    assert isinstance(answers(pool, cluster.started[1].cycles[0], True), CycleFinished)
    assert cluster.killed == cluster.started[:2]
    assert not pool.has_idle


def test_an_error_of_the_cycle_is_no_loss(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)
    end = answers(pool, cluster.started[1].cycles[0], RayTaskError("run_cycle", "", ValueError("bad")))
    assert isinstance(end, CycleFailed)
    assert len(cluster.started) == 2


def test_explorers_that_keep_dying_during_their_start_end_the_run(pool, cluster):
    with pytest.raises(RuntimeError, match="Cannot start explorers: 5 died during their start"):
        for _ in range(5):
            answers(pool, cluster.started[-1].pings[0], ActorDiedError())
    assert len(cluster.started) == 6


def test_all_explorers_are_killed_at_the_end(pool, cluster):
    ready(pool, cluster)
    pool.run_cycle("start", 1, 0, again=False)
    pool.close()
    assert set(cluster.killed) == set(cluster.started)
