import socket

import pytest

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.session import _local_cpus, check_address, cluster_address, explorer_slots, ray_session


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


@pytest.mark.parametrize(
    ("settings", "chains", "expected"),
    [
        ({}, 8, 4),
        ({}, 2, 2),
        ({"num_explorers": 3}, 8, 3),
        ({"cpus_per_worker": 2}, 8, 2),
        ({"num_explorers": 9}, 8, 4),
    ],
)
def test_explorers_are_no_more_than_asked_for_than_chains_and_than_fit(monkeypatch, settings, chains, expected):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    assert explorer_slots(ClusterConfig(**settings), chains) == expected


def test_fractional_gpus_let_several_explorers_share_one(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    assert explorer_slots(ClusterConfig(gpus_per_worker=0.25), 32) == 8


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
