import pytest

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed import standstill
from suptickets_ray.distributed.room import Lack
from suptickets_ray.distributed.standstill import Standstill

LACK = Lack("no explorer of 1 CPU", "an explorer must fit{waited}; none does.", "Ask for less")


class FakeMonitor:
    def __init__(self):
        self.said, self.report = [], self

    def remote(self, event):
        assert event["kind"] == "waiting"
        self.said.append(event["text"])


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(standstill.time, "monotonic", lambda: now[0])
    return now


def test_a_run_without_machines_says_so_once_and_gives_up_after_the_recipes_time(clock):
    monitor = FakeMonitor()
    watch = Standstill(ClusterConfig(wait_minutes=20), monitor, "an explorer")
    for clock[0] in range(0, 1200, 100):
        watch.look(True, LACK)
    assert monitor.said == ["waiting up to 20 minutes for machines: there is room for no explorer of 1 CPU"]
    clock[0] = 1200
    with pytest.raises(RuntimeError, match=r"must fit after 20 minutes; none does\. Ask for less, or give"):
        watch.look(True, LACK)


def test_machines_that_come_back_within_ten_minutes_are_waited_for_by_every_recipe(clock):
    monitor = FakeMonitor()
    watch = Standstill(ClusterConfig(), monitor, "an explorer")
    for clock[0] in range(0, 6000, 500):  # one comes and goes
        watch.look(True, LACK)
        watch.look(False, None)
    assert len(monitor.said) == 12
    watch.look(True, LACK)
    clock[0] += 600
    with pytest.raises(RuntimeError, match="after 10 minutes"):
        watch.look(True, LACK)


def test_machines_that_others_hold_are_waited_for_without_limit_but_not_silently(clock):
    monitor = FakeMonitor()
    watch = Standstill(ClusterConfig(), monitor, "an explorer")
    for clock[0] in range(0, 100_000, 59):
        watch.look(True, None)
    assert monitor.said == [
        "waiting for an explorer to start: others may hold the machines for it, or it still loads data"
    ]
