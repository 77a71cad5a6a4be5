import pytest

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster import capacity, watchdog
from suptickets_ray.distributed.cluster.capacity import ResourceShortfall


def node(name, is_alive=True, is_head=False, **resources):
    if is_head:
        resources["node:__internal_head__"] = 1.0
    return {"NodeID": name, "Alive": is_alive, "Resources": resources}


@pytest.fixture
def cluster(monkeypatch):
    """The machines that Ray knows, to be filled; what is asked of the autoscaler is kept."""
    nodes, asked = [], []
    monkeypatch.setattr(capacity.ray, "nodes", lambda: list(nodes))
    monkeypatch.setattr(capacity, "draining_nodes", lambda: frozenset({"going"}))
    monkeypatch.setattr(capacity, "request_machines", asked.append)
    monkeypatch.setattr(watchdog, "request_machines", asked.append)
    monkeypatch.setattr(watchdog, "CLUSTER_POLL_SECONDS", 0.0)
    return nodes, asked


@pytest.mark.parametrize(
    ("settings", "resources", "expected"),
    [
        ({}, {"CPU": 3.0}, 3),
        ({"cpus_per_worker": 2}, {"CPU": 3.0}, 1),
        ({"gpus_per_worker": 0.25}, {"CPU": 16.0, "GPU": 2.0}, 8),
        ({"gpus_per_worker": 0.1}, {"CPU": 16.0, "GPU": 1.0}, 10),
        ({"gpus_per_worker": 1.0}, {"CPU": 16.0}, 0),
        ({"memory_per_worker_gb": 3.0}, {"CPU": 16.0, "memory": 10e9}, 3),
        ({"explorer_resources": {"spot": 0.5}}, {"CPU": 16.0, "spot": 1.0}, 2),
        ({"explorer_resources": {"spot": 0.5}}, {"CPU": 16.0}, 0),
    ],
)
def test_explorers_fit_by_what_each_asks_for(cluster, settings, resources, expected):
    cluster[0].append(node("a", **resources))
    config = ClusterConfig(**settings)
    assert capacity.worker_capacity(config, capacity.explorer_bundle(config)) == expected


def test_a_worker_does_not_stretch_over_machines(cluster):
    cluster[0].extend([node("a", CPU=3.0), node("b", CPU=3.0)])
    config = ClusterConfig(cpus_per_worker=2)
    assert capacity.worker_capacity(config, capacity.worker_bundle(config)) == 2


def test_dead_machines_and_a_head_kept_free_have_no_places(cluster):
    cluster[0].extend([node("a", is_head=True, CPU=4.0), node("b", is_alive=False, CPU=4.0), node("c", CPU=1.0)])
    config = ClusterConfig(exclude_head_node=True)
    assert capacity.worker_capacity(config, capacity.worker_bundle(config)) == 1
    assert capacity.worker_labels(config) == {"ray.io/node-id": "!a"}


def test_explorers_are_at_most_those_asked_for_and_machines_that_go_do_not_count(cluster):
    cluster[0].extend([node("a", CPU=4.0), node("going", CPU=4.0)])
    assert capacity.num_explorers_that_fit(ClusterConfig(), chains=20) == 4
    assert capacity.num_explorers_that_fit(ClusterConfig(num_explorers=3), chains=20) == 3
    assert capacity.num_explorers_that_fit(ClusterConfig(), chains=2) == 2


def test_an_explorer_asks_for_memory_and_resources_of_ones_own(cluster):
    config = ClusterConfig(explorer_resources={"spot": 0.01}, memory_per_worker_gb=4, cpus_per_worker=2)
    assert capacity.explorer_bundle(config) == {"CPU": 2.0, "spot": 0.01, "memory": 4e9}
    assert capacity.worker_bundle(config) == {"CPU": 2.0, "memory": 4e9}
    options = {"num_cpus": 2.0, "num_gpus": 0, "resources": {"spot": 0.01}, "memory": 4e9}
    assert capacity.actor_options(capacity.explorer_bundle(config)) == options


def test_the_superposers_gpu_is_not_the_explorers(cluster):
    config = ClusterConfig(gpus_per_worker=1.0, superposer_gpus=1.0)
    cluster[0].append(node("a", CPU=8.0, GPU=2.0))
    assert capacity.explorer_capacity(config) == 1
    assert capacity.num_explorers_that_fit(config, chains=4) == 1
    cluster[0].append(node("b", is_head=True, CPU=0.0, GPU=1.0))  # there it costs no place
    assert capacity.explorer_capacity(config) == 2
    assert capacity.explorer_capacity(config, draining={"b"}) == 1
    sharing = ClusterConfig(gpus_per_worker=0.25, superposer_gpus=0.5)
    assert capacity.explorer_capacity(sharing, draining={"b"}) == 6


def test_the_superposer_keeps_off_machines_that_go_and_off_the_one_that_explorers_need(cluster):
    cluster[0].extend([node("a", CPU=8.0, GPU=1.0, spot=1.0), node("b", CPU=8.0, GPU=1.0)])
    gpus = {"gpus_per_worker": 1.0, "superposer_gpus": 1.0}
    assert capacity.superposer_labels(ClusterConfig(**gpus)) == {"ray.io/node-id": "!in(going)"}
    needed = ClusterConfig(**gpus, explorer_resources={"spot": 1.0})
    assert capacity.superposer_labels(needed) == {"ray.io/node-id": "!in(a,going)"}
    del cluster[0][1]  # there is no other: it is not kept from working
    assert capacity.superposer_labels(needed) == {"ray.io/node-id": "!in(going)"}


@pytest.mark.parametrize(
    ("settings", "resources", "refused"),
    [
        (
            {"explorer_resources": {"sopt": 0.01}},
            {"CPU": 4.0, "spot": 1.0},
            r"fit one machine; got 1 CPU and 0.01 sopt, and the cluster has 4 CPU and 0 sopt on 1 machines\. Corr",
        ),
        (
            {"gpus_per_worker": 1.0, "superposer_gpus": 1.0},
            {"CPU": 4.0, "GPU": 1.0},
            r"leave capacity for an explorer of 1 CPU and 1 GPU in the cluster's 4 CPU and 1 GPU on 1 machines; got 1",
        ),
        (
            {"superposer_gpus": 1.0},
            {"CPU": 4.0},
            r"must be at most 0, the GPUs of the largest machine; got 1\. Leave it",
        ),
    ],
)
def test_what_could_never_be_explored_or_merged_is_refused_before_pretraining(cluster, settings, resources, refused):
    cluster[0].append(node("a", **resources))
    with pytest.raises(ValueError, match=refused):
        watchdog.wait_for_capacity(ClusterConfig(**settings), lambda text: None)


def test_machines_for_explorers_are_waited_for_before_pretraining_begins(cluster):
    nodes, asked = cluster
    nodes.append(node("a", CPU=2.0))
    said = []

    def say(text):
        said.append(text)
        nodes.append(node("new", CPU=4.0, spot=1.0))

    config = ClusterConfig(num_workers=2, resource_timeout_minutes=5, explorer_resources={"spot": 0.01})
    watchdog.wait_for_capacity(config, say)
    assert said == [
        "waiting up to 5 minutes for machines: the cluster has capacity for no explorer of 1 CPU and 0.01 spot",
    ]
    assert asked[1] == [{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0, "spot": 0.01}]


def test_what_was_asked_of_the_autoscaler_is_taken_back_whatever_ends_the_waiting(cluster):
    with pytest.raises(ValueError, match="after 1e-05 minutes"):
        watchdog.wait_for_capacity(ClusterConfig(num_workers=2, resource_timeout_minutes=1e-5), lambda text: None)
    assert cluster[1][-1] == []
    cluster[1].clear()

    def interrupt(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watchdog.wait_for_capacity(ClusterConfig(resource_timeout_minutes=5), interrupt)
    assert cluster[1] == [[], [{"CPU": 1.0}], []]  # the first takes back what a killed start had asked for


TRIALS = ResourceShortfall("fewer than 2 trials at once", "2 trials must fit{waited}.", "Choose fewer")


def test_machines_for_trials_are_waited_for(cluster):
    nodes, asked = cluster
    said = []

    def say(text):
        said.append(text)
        nodes.append(node("new", CPU=2.0))

    waiting = ClusterConfig(resource_timeout_minutes=5)
    watchdog.wait_for_machines(waiting, [{"CPU": 1.0}], lambda: None if nodes else TRIALS, say)
    assert said == ["waiting up to 5 minutes for machines: the cluster has capacity for fewer than 2 trials at once"]
    assert asked == [[{"CPU": 1.0}], []]


def test_without_time_to_wait_machines_for_trials_are_refused_at_once(cluster):
    refused = r"2 trials must fit\. Choose fewer, or give an autoscaler time with cluster\.resource_timeout_minutes\."
    with pytest.raises(ValueError, match=refused):
        watchdog.wait_for_machines(ClusterConfig(), [], lambda: TRIALS, pytest.fail)
    assert cluster[1] == []


def test_what_never_fits_is_refused_with_the_numbers(cluster):
    cluster[0].append(node("a", CPU=4.0, GPU=1.0))
    refused = r"at most 1, the workers of 1 CPU and 1 GPU that fit the cluster's 4 CPU and 1 GPU on 1 machines; got 2"
    with pytest.raises(ValueError, match=refused):
        watchdog.wait_for_capacity(ClusterConfig(num_workers=2, gpus_per_worker=1.0), lambda text: None)
    assert cluster[1] == []


def test_what_may_fit_later_waits_with_a_message_and_asks_the_autoscaler(cluster):
    nodes, asked = cluster
    said = []

    def say(text):
        said.append(text)
        nodes.append(node("new", CPU=4.0))  # as an autoscaler would

    watchdog.wait_for_capacity(ClusterConfig(num_workers=2, resource_timeout_minutes=5), say)
    assert said == ["waiting up to 5 minutes for machines: the cluster has capacity for 0 of 2 workers of 1 CPU"]
    assert asked == [[], [{"CPU": 1.0}] * 2, []]


def test_waiting_ends(cluster):
    with pytest.raises(ValueError, match=r"after 1e-05 minutes; got 2"):
        watchdog.wait_for_capacity(ClusterConfig(num_workers=2, resource_timeout_minutes=1e-5), lambda text: None)


def test_an_elastic_pretraining_begins_with_the_fewest(cluster):
    cluster[0].append(node("a", CPU=1.0))
    watchdog.wait_for_capacity(ClusterConfig(num_workers=[1, 4]), lambda text: pytest.fail("it need not wait"))


def test_machines_are_those_that_live_and_do_not_drain_and_the_head_is_known(cluster):
    cluster[0].extend([node("a", is_head=True, CPU=4.0), node("b", is_alive=False, CPU=4.0), node("c"), node("d")])

    def found(**settings):
        machines = capacity.find_machines(ClusterConfig(**settings), draining={"d"})
        return [(machine.node, machine.takes_workers) for machine in machines]

    assert found() == [("a", True), ("c", True)]
    assert found(exclude_head_node=True) == [("a", False), ("c", True)]
