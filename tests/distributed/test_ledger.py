from suptickets_ray.distributed.ledger import Leases


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
