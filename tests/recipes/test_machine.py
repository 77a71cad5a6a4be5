"""What a recipe leaves to the machine."""

import pytest
import torch

from suptickets_ray import load_config
from suptickets_ray.recipes.machine import with_machine_choices, with_recorded, with_threads
from suptickets_ray.training import precision
from suptickets_ray.training.data import load_data
from suptickets_ray.training.precision import fastest_precision, step_seconds

AUTO = ["cluster.threads_per_worker=auto", "cluster.threads_per_explorer=auto"]
CONV = ["model.name=resnet20", "model.options={width: 4}", "data.num_train_examples=60"]


def threads_of(config):
    return config.cluster.threads_per_worker, config.cluster.threads_per_explorer


@pytest.mark.parametrize(
    ("cores", "ranks", "chains", "cpus", "expected"),
    [
        (2, 2, 1, 1, (1, 2)),  # one chain computes on both cores
        (2, 1, 2, 1, (2, 1)),
        (8, 3, 2, 1, (2, 4)),
        (2, 4, 16, 1, (1, 1)),
        (None, 2, 1, 3, (3, 3)),  # on a cluster: what a worker requests
        (2, 2, 2, 2, (2, 2)),
    ],
)
def test_auto_threads_divide_the_cores_over_the_processes_of_a_phase(cores, ranks, chains, cpus, expected):
    sizes = [f"cluster.num_workers={ranks}", f"tickets.num_chains={chains}", f"cluster.cpus_per_worker={cpus}"]
    assert threads_of(with_threads(load_config(None, [*AUTO, *sizes]), cores)) == expected


def test_the_explorers_of_a_search_share_the_cores_with_other_trials():
    config = load_config(None, [*AUTO, "tickets.num_chains=1", "cluster.num_workers=1"])
    assert threads_of(with_threads(config, 8, searches=True)) == (8, 1)


def test_given_threads_are_kept_whatever_the_machine():
    config = load_config(None, ["cluster.threads_per_worker=3", "cluster.threads_per_explorer=2"])
    assert with_machine_choices(config, 16) is not None
    assert threads_of(with_machine_choices(config, 16)) == (3, 2)


def test_the_number_of_explorers_does_not_change_the_threads():
    found = {
        threads_of(with_threads(load_config(None, [*AUTO, f"cluster.num_explorers={number}"]), 8))
        for number in (1, 2, 4)
    }
    assert len(found) == 1


def test_a_later_start_takes_the_recorded_choices_and_nothing_else():
    recorded = load_config(
        None,
        [
            *CONV,
            "cluster.threads_per_worker=4",
            "cluster.threads_per_explorer=2",
            "train.precision=bfloat16",
            "train.channels_last=true",
            "seed=3",
        ],
    )
    config = load_config(None, [*CONV, *AUTO, "train.precision=auto"])
    found = with_recorded(config, recorded)
    assert threads_of(found) == (4, 2)
    assert (found.train.precision, found.train.channels_last, found.seed) == ("bfloat16", True, 0)
    fixed = load_config(None, [*CONV, "cluster.threads_per_worker=1"])
    assert with_recorded(fixed, recorded).cluster.threads_per_worker == 1
    assert with_recorded(fixed, recorded).train.precision == "float32"


@pytest.mark.parametrize(
    ("computes", "seconds", "expected"),
    [
        (True, {"float32": 1.0, "bfloat16": 0.5}, ("bfloat16", True)),
        (True, {"float32": 1.0, "bfloat16": 0.95}, ("float32", False)),  # too little for what it costs
        (False, {}, ("float32", False)),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_has_it_and_the_step_is_faster(monkeypatch, computes, seconds, expected):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: computes)
    monkeypatch.setattr(precision, "step_seconds", lambda config, splits, section, device: seconds[section.precision])
    config = load_config(None, [*CONV, "train.precision=auto"])
    chosen = with_machine_choices(config, 2)
    assert (chosen.train.precision, chosen.train.channels_last) == expected


def test_a_gpu_recipe_is_not_measured_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load_config(None, ["train.precision=auto", "cluster.gpus_per_worker=1"])
    with pytest.raises(ValueError, match="must be measured on a GPU, and this machine has none"):
        fastest_precision(config, load_data(config.data))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_step_is_measured_and_leaves_no_trace(name):
    config = load_config(None, [*CONV, f"train.precision={name}"])
    before = torch.get_num_threads()
    assert step_seconds(config, load_data(config.data), config.train, torch.device("cpu")) > 0
    assert torch.get_num_threads() == before
