import re

import pytest

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster.bin_packing import Machine
from suptickets_ray.distributed.tune.placement import divide_capacity, placement_shortfall, trial_resources

FOUR_CPUS = Machine({"CPU": 4.0})
EIGHT_AND_TWO_GPUS = Machine({"CPU": 8.0, "GPU": 2.0})


@pytest.mark.parametrize(
    ("settings", "machines", "trials", "chains", "wanted", "found"),
    [
        ({}, [FOUR_CPUS], 20, 4, None, (4, 1)),
        ({}, [FOUR_CPUS], 2, 4, None, (2, 2)),
        ({}, [FOUR_CPUS], 20, 4, 2, (2, 2)),
        ({}, [FOUR_CPUS], 1, 3, None, (1, 3)),
        ({"num_explorers": 1}, [FOUR_CPUS], 1, 3, None, (1, 1)),
        ({"cpus_per_worker": 3}, [FOUR_CPUS, FOUR_CPUS], 20, 4, None, (2, 1)),  # none stretches over machines
        ({"gpus_per_worker": 0.25}, [EIGHT_AND_TWO_GPUS], 4, 2, None, (4, 2)),
        ({"gpus_per_worker": 0.25, "superposer_gpus": 0.5}, [EIGHT_AND_TWO_GPUS], 9, 4, None, (2, 2)),
        ({"superposer_gpus": 1.0}, [EIGHT_AND_TWO_GPUS, FOUR_CPUS], 9, 4, None, (2, 4)),
        ({}, [Machine({"CPU": 4.0}, takes_workers=False), Machine({"CPU": 2.0})], 9, 4, None, (2, 1)),
        # The superposer may be on the head, also where that is kept free.
        (
            {"superposer_gpus": 1.0, "gpus_per_worker": 1.0},
            [Machine({"CPU": 4.0, "GPU": 1.0}, takes_workers=False), Machine({"CPU": 4.0, "GPU": 1.0})],
            9,
            4,
            None,
            (1, 1),
        ),
        ({}, [Machine({"CPU": 1.0})], 20, 4, None, (1, 1)),
    ],
)
def test_trials_share_the_room_there_is(settings, machines, trials, chains, wanted, found):
    config = ClusterConfig(**settings)
    assert divide_capacity(config, machines, trials, chains, wanted) == found
    assert placement_shortfall(config, machines, *found) is None


@pytest.mark.parametrize(
    ("settings", "machines", "wanted", "message"),
    [
        ({}, [FOUR_CPUS], 5, "5 trials x 1 explorers x 1 CPU and 0 GPU = 5 explorers, and the cluster fits 4"),
        (
            {"cpus_per_worker": 2},
            [Machine({"CPU": 1.0})],
            None,
            "1 trials x 1 explorers x 2 CPU.* and the cluster fits 0",
        ),
        (
            {"superposer_gpus": 1.0},
            [FOUR_CPUS],
            None,
            "beside 1 GPU for each trial's superposer, and the cluster fits 0",
        ),
        (
            {"superposer_gpus": 0.5, "gpus_per_worker": 1.0},
            [Machine({"CPU": 8.0, "GPU": 1.0})],
            None,
            "x 1 CPU and 1 GPU = 1 explorers beside 0.5 GPU for each trial's superposer, and the cluster fits 0",
        ),
    ],
)
def test_what_would_wait_for_ever_is_refused_with_the_sum(settings, machines, wanted, message):
    config = ClusterConfig(**settings)
    shortfall = placement_shortfall(config, machines, *divide_capacity(config, machines, 20, 4, wanted))
    assert re.search(message, shortfall.error_text(minutes=0))


def test_explorers_have_bundles_of_their_own_and_the_trial_asks_for_nothing():
    found = trial_resources(ClusterConfig(gpus_per_worker=0.25, cpus_per_worker=2), 3, {})
    assert found.head_bundle_is_empty
    assert found.bundles == [{"CPU": 2.0, "GPU": 0.25}] * 3


def test_a_superposers_gpu_is_the_trials_own_bundle():
    found = trial_resources(ClusterConfig(superposer_gpus=0.5), 2, {})
    assert not found.head_bundle_is_empty
    assert found.bundles == [{"GPU": 0.5}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert found.head_cpus == 0


def test_explorers_keep_off_a_head_that_is_kept_free_and_every_bundle_has_a_selector():
    labels = {"ray.io/node-id": "!a"}
    for settings in ({}, {"superposer_gpus": 1.0}):
        found = trial_resources(ClusterConfig(**settings), 2, labels)
        selectors = found._bound.kwargs["bundle_label_selector"]  # Ray has no public way to them
        assert len(selectors) == len(found.bundles)
        assert selectors[-2:] == [labels, labels]
        assert all(selector == {} for selector in selectors[:-2])
