import pytest
from hypothesis import given
from hypothesis import strategies as st

from suptickets_ray.distributed.cluster.bin_packing import Machine, num_beside, num_on, num_that_fit, reserved

WORKER = {"CPU": 1.0, "GPU": 0.5}
GUEST = {"GPU": 0.5}


@pytest.mark.parametrize(
    ("resources", "bundle", "expected"),
    [
        ({"CPU": 3.0}, {"CPU": 1.0}, 3),
        ({"CPU": 3.0}, {"CPU": 2.0}, 1),
        ({"CPU": 16.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.1}, 10),  # 1.0 / 0.1 is rounded
        ({"CPU": 16.0}, {"CPU": 1.0, "GPU": 1.0}, 0),
        ({"CPU": -1.0}, {"CPU": 1.0}, 0),
    ],
)
def test_bundles_fit_by_their_scarcest_resource(resources, bundle, expected):
    assert num_on(Machine(resources), bundle) == expected


def test_a_bundle_cannot_span_machines_and_a_machine_may_take_no_workers():
    machines = [Machine({"CPU": 3.0}), Machine({"CPU": 3.0}), Machine({"CPU": 8.0}, takes_workers=False)]
    assert num_that_fit(machines, {"CPU": 2.0}) == 2


def test_guests_go_where_they_displace_the_fewest_workers():
    small, large = Machine({"CPU": 8.0, "GPU": 1.0}), Machine({"CPU": 1.0, "GPU": 4.0})
    assert num_beside([small, large], WORKER, GUEST, 1) == 3  # large has no CPU for more than one worker
    assert num_beside([small, large], WORKER, GUEST, 7) == 3
    assert num_beside([small, large], WORKER, GUEST, 8) == 2
    assert num_beside([small, large], WORKER, GUEST, 11) is None


def test_guests_may_be_on_a_machine_without_workers_and_an_empty_guest_needs_none():
    head, worker = Machine({"CPU": 4.0, "GPU": 1.0}, takes_workers=False), Machine({"CPU": 4.0, "GPU": 1.0})
    assert num_beside([head, worker], WORKER, GUEST, 2) == 2
    assert num_beside([head, worker], WORKER, GUEST, 3) == 1
    assert num_beside([worker], WORKER, {}, 100) == 2
    assert num_beside([], WORKER, {}) == 0


AMOUNTS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0])
MACHINES = st.lists(
    st.builds(lambda cpus, gpus, takes: Machine({"CPU": cpus, "GPU": gpus}, takes), AMOUNTS, AMOUNTS, st.booleans()),
    min_size=1,
    max_size=4,
)


@given(MACHINES, AMOUNTS.filter(bool))
def test_one_guest_leaves_as_many_workers_as_its_best_machine_allows(machines, gpus):
    guest = {"GPU": gpus}
    options = [
        num_that_fit([*machines[:number], reserved(host, guest), *machines[number + 1 :]], WORKER)
        for number, host in enumerate(machines)
        if num_on(host, guest)
    ]
    assert num_beside(machines, WORKER, guest) == (max(options) if options else None)


@given(MACHINES, st.integers(0, 6))
def test_more_guests_never_leave_more_workers(machines, num_guests):
    fewer, more = (num_beside(machines, WORKER, GUEST, number) for number in (num_guests, num_guests + 1))
    assert more is None or more <= fewer
