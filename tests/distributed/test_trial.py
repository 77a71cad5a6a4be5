import math

import pytest
import torch

from suptickets_ray import load_config
from suptickets_ray.distributed.tune.trial import comparable, first_epoch, mean_scores, trial_device


@pytest.mark.parametrize(
    ("kept", "first"),
    [
        ([None], 1),
        ([None, None], 1),
        ([{}, None], 5),  # the first seed's 4 epochs are there, and nobody writes them again
        ([{}, {}, None, None], 9),
        ([{}, {}], None),  # nothing is run: nothing may be hidden
    ],
)
def test_only_the_curves_that_are_written_again_are_hidden(kept, first):
    assert first_epoch(kept, 4) == first


def test_a_diverged_seed_makes_the_mean_nan_and_breaks_nothing():
    rows = [
        {"validation_accuracy": 0.1, "validation_loss": math.nan},
        {"validation_accuracy": 0.3, "validation_loss": 1},
    ]
    means = mean_scores(rows)
    assert means["validation_accuracy"] == 0.2
    assert math.isnan(means["validation_loss"])


@pytest.mark.parametrize(
    ("metric", "mode", "worst"),
    [("validation_accuracy", "max", -math.inf), ("validation_loss", "min", math.inf)],
)
def test_what_has_diverged_is_the_worst_to_a_scheduler(metric, mode, worst):
    scores = {"validation_accuracy": 0.2, "validation_loss": 1.0}
    assert comparable(scores, metric, mode) == scores
    assert comparable({**scores, metric: math.nan}, metric, mode) == {**scores, metric: worst}


def test_a_trial_merges_where_the_superposer_of_a_run_would():
    assert trial_device(load_config(None, [])) == torch.device("cpu")
    assert trial_device(load_config(None, ["cluster.superposer_gpus=0.5"])) == torch.device("cuda")
