import pytest

from suptickets_ray.distributed.cluster.retry import (
    MAX_ATTEMPTS,
    MIN_STALL_SECONDS,
    RetryBudget,
    StallTimer,
    should_retry,
    stall_limit_seconds,
)
from suptickets_ray.distributed.pipeline.cycle_order import cycles_from_state, finished_cycles, next_cycle


@pytest.mark.parametrize(
    ("done", "running", "expected"),
    [
        ({0: 0, 1: 0}, [], (0, 0)),
        ({0: 0, 1: 0}, [0], (1, 0)),
        ({0: 1, 1: 0}, [], (1, 0)),  # who is behind comes first
        ({0: 1, 1: 1}, [1], (0, 1)),
        ({0: 2, 1: 1}, [1], None),  # chain 0 is done, chain 1 is busy
        ({0: 2, 1: 2}, [], None),
    ],
)
def test_the_chain_furthest_behind_goes_first(done, running, expected):
    assert next_cycle(done, running, cycles=2) == expected


@pytest.mark.parametrize("num_explorers", [1, 2, 3, 7])
def test_every_cycle_runs_once_and_in_order_within_its_chain(num_explorers):
    done, running, started = dict.fromkeys(range(3), 0), [], []
    while min(done.values()) < 4:
        while len(running) < num_explorers and (job := next_cycle(done, [c for c, _ in running], 4)):
            running.append(job)
            started.append(job)
        chain, cycle = running.pop()  # the newest finishes first: any order must do
        assert done[chain] == cycle
        done[chain] = cycle + 1
    assert sorted(started) == [(chain, cycle) for chain in range(3) for cycle in range(4)]


def test_a_lost_cycle_is_tried_again_but_not_for_ever():
    assert [should_retry(attempts) for attempts in (1, MAX_ATTEMPTS - 1, MAX_ATTEMPTS)] == [True, True, False]


@pytest.mark.parametrize(
    ("stored", "state_cycle", "expected"),
    [
        ([(0, 0), (0, 1), (1, 0)], 1, 2),
        ([(0, 0), (0, 1)], 0, 1),  # killed between the ticket and its state: the cycle runs again
        ([(0, 1)], 1, 0),  # a damaged or missing ticket: the chain is made anew
        ([(1, 0)], None, 0),
    ],
)
def test_a_chain_goes_on_from_its_last_state_if_all_its_tickets_are_there(stored, state_cycle, expected):
    assert finished_cycles(stored, 0, state_cycle) == expected


@pytest.mark.parametrize(
    ("done", "state_cycle", "expected"),
    [
        (2, 1, 2),  # the state that the driver knows of
        (2, 2, 3),  # the machine went between storing cycle 2 and telling so
        (2, 0, None),  # older than what the driver has seen
        (2, None, None),  # damaged, or never written
        (0, None, None),
        (0, 0, 1),
    ],
)
def test_a_state_that_was_stored_just_before_a_death_counts(done, state_cycle, expected):
    assert cycles_from_state(done, state_cycle) == expected


def test_deaths_count_until_it_gets_further_than_ever():
    retries = RetryBudget(max_failures=3)
    assert [retries.record_failure(), retries.record_failure()] == [True, True]
    retries.record_progress(1)
    assert [retries.record_failure(), retries.record_failure()] == [True, True]  # a day of preemptions
    retries.record_progress(1)  # no further than before
    assert not retries.record_failure()


def test_a_drought_is_said_once_and_ends_with_rain_or_the_limit():
    stall = StallTimer(limit_seconds=1200)
    assert [stall.update(True, 0.0), stall.update(True, 1199.0)] == [True, False]
    assert not stall.is_over_limit(1199.0)
    assert not stall.update(False, 1200.0)
    assert not stall.is_over_limit(5000.0)
    assert stall.update(True, 6000.0)
    assert stall.is_over_limit(7200.0)


def test_machines_may_come_back_also_where_nobody_said_how_long_to_wait():
    assert stall_limit_seconds(resource_timeout_minutes=0) == MIN_STALL_SECONDS == 600
    assert stall_limit_seconds(resource_timeout_minutes=20) == 1200
