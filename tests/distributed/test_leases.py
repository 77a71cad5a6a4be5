import threading
import time

import pytest
import ray

from suptickets_ray.distributed.tune.leases import Leases, LeaseServer, leased


def test_a_key_has_one_holder_until_it_is_given_back():
    leases = Leases(lease_seconds=10)
    assert leases.acquire("a", "one", 0)
    assert not leases.acquire("a", "two", 1)
    assert leases.acquire("b", "two", 1)
    leases.release("a", "two")  # not its own
    assert not leases.acquire("a", "two", 2)
    leases.release("a", "one")
    assert leases.acquire("a", "two", 3)


def test_a_holder_that_is_silent_loses_its_key_and_one_that_renews_keeps_it():
    leases = Leases(lease_seconds=10)
    assert leases.acquire("a", "one", 0)
    assert leases.acquire("a", "one", 8)
    assert not leases.acquire("a", "two", 17)
    assert leases.acquire("a", "two", 18)
    assert not leases.acquire("a", "one", 19)


@pytest.mark.ray
def test_a_holder_that_is_busy_for_long_keeps_its_lease(ray_address):
    lease_server = LeaseServer.remote(1.0)
    with leased(lease_server, "a", "one", 1.0) as lease:
        time.sleep(2.5)  # a merge that calls nothing of ours
        assert not ray.get(lease_server.acquire.remote("a", "two"))
        lease.check()
    assert ray.get(lease_server.acquire.remote("a", "two"))
    assert not any(thread.name == "lease" for thread in threading.enumerate())
    ray.kill(lease_server)


@pytest.mark.ray
def test_whoever_lost_its_lease_is_told_and_does_not_go_on(ray_address):
    lease_server = LeaseServer.remote(1.0)
    with leased(lease_server, "a", "one", 1.0) as lease:
        ray.get(lease_server.release.remote("a", "one"))  # as if it had been silent
        assert ray.get(lease_server.acquire.remote("a", "two"))
        deadline = time.monotonic() + 10
        while True:
            try:
                lease.check()
            except RuntimeError as error:
                assert "Cannot continue exploration a: another trial has taken it over" in str(error)
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not ray.get(lease_server.acquire.remote("a", "one"))  # what the other holds stays the other's
    ray.kill(lease_server)


@pytest.mark.ray
def test_nobody_waits_for_a_ledger_that_is_gone(ray_address):
    lease_server = LeaseServer.remote(1.0)
    with pytest.raises(ray.exceptions.RayActorError), leased(lease_server, "a", "one", 1.0):
        ray.kill(lease_server)
        time.sleep(0.5)
