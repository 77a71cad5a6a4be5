import socket

import pytest

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.room import places_for_workers, worker_labels
from suptickets_ray.distributed.session import (
    _local_cpus,
    asks_for_token,
    check_address,
    cluster_address,
    ray_session,
)


def node(node_id="n", alive=True, head=False, **resources):
    resources |= {"node:__internal_head__": 1.0} if head else {}
    return {"NodeID": node_id, "Alive": alive, "Resources": resources}


def test_a_head_that_is_kept_free_and_machines_that_are_gone_have_no_room(monkeypatch):
    nodes = [node("h", head=True, CPU=8.0), node("a", CPU=2.0), node("b", alive=False, CPU=4.0)]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert places_for_workers(ClusterConfig(), {"CPU": 1.0}) == 10
    assert places_for_workers(ClusterConfig(keep_head_free=True), {"CPU": 1.0}) == 2
    assert worker_labels(ClusterConfig()) == {}
    assert worker_labels(ClusterConfig(keep_head_free=True)) == {"ray.io/node-id": "!h"}


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
    with pytest.raises(ValueError, match=f"cluster.address must be a Ray cluster that answers; got '{address}'"):
        check_address(ClusterConfig(address=address))


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


@pytest.mark.ray
def test_another_cluster_than_the_one_this_process_is_connected_to_is_refused(ray_address):
    message = f"cluster.address must be {ray_address}, which this process is connected to"
    with pytest.raises(ValueError, match=message), ray_session(ClusterConfig(address="127.0.0.1:1")):
        pass
    with ray_session(ClusterConfig(address=ray_address)):
        pass


def test_a_ray_without_a_token_is_recognised(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not asks_for_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 40)
    assert asks_for_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert not asks_for_token()
