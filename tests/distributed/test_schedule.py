import pytest

from suptickets_ray.distributed.schedule import MAX_ATTEMPTS, finished_cycles, next_cycle, should_retry


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
