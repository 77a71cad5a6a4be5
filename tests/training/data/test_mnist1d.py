"""MNIST-1D through its own package."""
# ruff: noqa: NPY002 - the package seeds the global generators

import random
import sys

import numpy as np
import pytest
import torch

from suptickets_ray.config import DataConfig
from suptickets_ray.training.data import load_data
from suptickets_ray.training.data.mnist1d import mnist1d


def test_it_is_what_the_package_makes():
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.seed, settings.num_samples, settings.train_split = 3, 200, 0.75
    states = random.getstate(), np.random.get_state()
    made = make_dataset(settings)
    random.setstate(states[0])
    np.random.set_state(states[1])
    loaded = mnist1d(3, 200, 0.75)
    for split, inputs, labels, count in (("train", "x", "y", 150), ("test", "x_test", "y_test", 50)):
        assert loaded[split][0].shape == (count, 40)
        assert torch.equal(loaded[split][0], torch.from_numpy(made[inputs]).float())
        assert loaded[split][1].tolist() == made[labels].tolist()
    assert loaded["num_classes"] == 10


def test_every_class_is_drawn_equally_often():
    loaded = mnist1d(0, 200)
    labels = torch.cat([loaded["train"][1], loaded["test"][1]])
    assert labels.bincount().tolist() == [20] * 10


def test_the_seed_decides_everything():
    first, again, other = (mnist1d(seed, 100)["train"][0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_generators_are_left_as_they_were():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    mnist1d(5, 20)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_global_generators_are_left_as_they_were_when_the_package_fails(monkeypatch):
    from mnist1d import data as package

    def fails(settings):
        np.random.seed(settings.seed)
        raise RuntimeError("no luck")

    monkeypatch.setattr(package, "make_dataset", fails)
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    with pytest.raises(RuntimeError, match="no luck"):
        mnist1d(5, 20)
    assert np.random.rand() == expected


def test_a_seed_beyond_numpys_range_is_no_matter():
    assert len(mnist1d(2**40 + 1, 20)["train"][1]) == 16


def test_it_splits_like_any_other_set():
    splits = load_data(DataConfig(name="mnist1d", batch_size=50, num_train_examples=300, options={"num_samples": 1000}))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (300, 80, 200)
    assert splits.sample_shape == (40,)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    for name in ("mnist1d", "mnist1d.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"without the package mnist1d: .*Install suptickets-ray\[mnist1d\]"):
        mnist1d(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 10}, "num_samples must be at least 20 and a multiple of 10; got 10"),
        ({"num_samples": 25}, "num_samples must be at least 20 and a multiple of 10; got 25"),
        ({"train_share": 0.0}, r"train_share must be in \(0, 1\); got 0.0"),
        ({"train_share": 1.0}, r"train_share must be in \(0, 1\); got 1.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mnist1d(0, **options)
