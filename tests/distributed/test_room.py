import pytest

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed import room


def node(name, is_alive=True, is_head=False, **resources):
    if is_head:
        resources["node:__internal_head__"] = 1.0
    return {"NodeID": name, "Alive": is_alive, "Resources": resources}


@pytest.fixture
def cluster(monkeypatch):
    """The machines that Ray knows, to be filled; what is asked of the autoscaler is kept."""
    nodes, asked = [], []
    monkeypatch.setattr(room.ray, "nodes", lambda: list(nodes))
    monkeypatch.setattr(room, "draining_nodes", lambda: frozenset({"going"}))
    monkeypatch.setattr(room, "request_machines", asked.append)
    monkeypatch.setattr(room, "_WAIT_SECONDS", 0.0)
    return nodes, asked


@pytest.mark.parametrize(
    ("settings", "resources", "places"),
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
def test_explorers_fit_by_what_each_asks_for(cluster, settings, resources, places):
    cluster[0].append(node("a", **resources))
    config = ClusterConfig(**settings)
    assert room.places_for_workers(config, room.explorer_bundle(config)) == places


def test_a_worker_does_not_stretch_over_machines(cluster):
    cluster[0].extend([node("a", CPU=3.0), node("b", CPU=3.0)])
    config = ClusterConfig(cpus_per_worker=2)
    assert room.places_for_workers(config, room.worker_bundle(config)) == 2


def test_dead_machines_and_a_head_kept_free_have_no_places(cluster):
    cluster[0].extend([node("a", is_head=True, CPU=4.0), node("b", is_alive=False, CPU=4.0), node("c", CPU=1.0)])
    config = ClusterConfig(keep_head_free=True)
    assert room.places_for_workers(config, room.worker_bundle(config)) == 1
    assert room.worker_labels(config) == {"ray.io/node-id": "!a"}


def test_explorers_are_at_most_those_asked_for_and_machines_that_go_do_not_count(cluster):
    cluster[0].extend([node("a", CPU=4.0), node("going", CPU=4.0)])
    assert room.explorer_slots(ClusterConfig(), chains=20) == 4
    assert room.explorer_slots(ClusterConfig(num_explorers=3), chains=20) == 3
    assert room.explorer_slots(ClusterConfig(), chains=2) == 2


def test_an_explorer_asks_for_memory_and_resources_of_ones_own(cluster):
    config = ClusterConfig(explorer_resources={"spot": 0.01}, memory_per_worker_gb=4, cpus_per_worker=2)
    assert room.explorer_bundle(config) == {"CPU": 2.0, "spot": 0.01, "memory": 4e9}
    assert room.worker_bundle(config) == {"CPU": 2.0, "memory": 4e9}
    options = {"num_cpus": 2.0, "num_gpus": 0, "resources": {"spot": 0.01}, "memory": 4e9}
    assert room.actor_options(room.explorer_bundle(config)) == options


def test_what_never_fits_is_refused_with_the_numbers(cluster):
    cluster[0].append(node("a", CPU=4.0, GPU=1.0))
    refused = r"at most 1, the workers of 1 CPU and 1 GPU that fit the cluster's 4 CPU and 1 GPU on 1 machines; got 2"
    with pytest.raises(ValueError, match=refused):
        room.wait_for_room(ClusterConfig(num_workers=2, gpus_per_worker=1.0), lambda text: None)
    assert cluster[1] == []


def test_what_may_fit_later_waits_with_a_message_and_asks_the_autoscaler(cluster):
    nodes, asked = cluster
    said = []

    def say(text):
        said.append(text)
        nodes.append(node("new", CPU=4.0))  # as an autoscaler would

    room.wait_for_room(ClusterConfig(num_workers=2, wait_minutes=5), say)
    assert said == ["waiting up to 5 minutes for machines: there is room for 0 of 2 workers of 1 CPU"]
    assert asked == [[{"CPU": 1.0}] * 2, []]


def test_waiting_ends(cluster):
    with pytest.raises(ValueError, match=r"after 1e-05 minutes; got 2"):
        room.wait_for_room(ClusterConfig(num_workers=2, wait_minutes=1e-5), lambda text: None)


def test_an_elastic_phase_one_begins_with_the_fewest(cluster):
    cluster[0].append(node("a", CPU=1.0))
    room.wait_for_room(ClusterConfig(num_workers=[1, 4]), lambda text: pytest.fail("it need not wait"))
