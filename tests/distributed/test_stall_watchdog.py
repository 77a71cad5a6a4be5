import threading

import pytest

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster import event_queue as monitor_module
from suptickets_ray.distributed.cluster import watchdog
from suptickets_ray.distributed.cluster.capacity import ResourceShortfall
from suptickets_ray.distributed.cluster.event_queue import watched
from suptickets_ray.distributed.cluster.watchdog import StallWatchdog
from suptickets_ray.progress.events import Waiting

SHORTFALL = ResourceShortfall("no explorer of 1 CPU", "an explorer must fit{waited}; none does.", "Ask for less")


class FakeMonitor:
    def __init__(self):
        self.said, self.report = [], self

    def remote(self, event):
        assert isinstance(event, Waiting)
        self.said.append(event.text)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


def test_a_run_without_machines_says_so_once_and_gives_up_after_the_recipes_time(clock):
    monitor = FakeMonitor()
    watch = StallWatchdog(ClusterConfig(resource_timeout_minutes=20), monitor, "an explorer")
    for clock[0] in range(0, 1200, 100):
        watch.poll(True, SHORTFALL)
    assert monitor.said == ["waiting up to 20 minutes for machines: the cluster has capacity for no explorer of 1 CPU"]
    clock[0] = 1200
    with pytest.raises(RuntimeError, match=r"must fit after 20 minutes; none does\. Ask for less, or give"):
        watch.poll(True, SHORTFALL)


def test_machines_that_come_back_within_ten_minutes_are_waited_for_by_every_recipe(clock):
    monitor = FakeMonitor()
    watch = StallWatchdog(ClusterConfig(), monitor, "an explorer")
    for clock[0] in range(0, 6000, 500):  # one comes and goes
        watch.poll(True, SHORTFALL)
        watch.poll(False, None)
    assert len(monitor.said) == 12
    watch.poll(True, SHORTFALL)
    clock[0] += 600
    with pytest.raises(RuntimeError, match="after 10 minutes"):
        watch.poll(True, SHORTFALL)


def test_machines_that_others_hold_are_waited_for_without_limit_but_not_silently(clock):
    monitor = FakeMonitor()
    watch = StallWatchdog(ClusterConfig(), monitor, "an explorer")
    for clock[0] in range(0, 100_000, 59):
        watch.poll(True, None)
    assert monitor.said == [
        "waiting for an explorer to start: suitable machines may be in use, or it may still be loading data"
    ]


def test_a_search_whose_machines_are_all_gone_gives_up_too(clock, monkeypatch):
    monitor, polls = FakeMonitor(), []
    monkeypatch.setattr(watchdog, "explorer_shortfall", lambda config: polls.append(clock[0]) or SHORTFALL)
    poll = watchdog.capacity_watch(ClusterConfig(), monitor, "a trial")
    with pytest.raises(RuntimeError, match="must fit after 10 minutes; none does"):
        for clock[0] in range(700):
            poll()
    assert polls[:3] == [3, 6, 9]  # the cluster is not asked more often
    assert polls[-1] == 603


def test_what_is_noticed_while_others_work_ends_the_wait_for_them(monkeypatch):
    monkeypatch.setattr(monitor_module, "show_events", lambda monitor, on_event: None)
    never = threading.Event()
    told = []

    def notice():
        told.append(1)
        if len(told) == 3:
            raise RuntimeError("no machine is left")

    with pytest.raises(RuntimeError, match="no machine is left"):
        watched(never.wait, None, print, "the search", notice)
    never.set()
