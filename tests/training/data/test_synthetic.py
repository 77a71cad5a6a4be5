"""Made-up images."""

import time

import pytest
import torch
from torch.nn.functional import cross_entropy

from suptickets_ray.config import DataConfig
from suptickets_ray.training.data import load_data
from suptickets_ray.training.data.synthetic import SHAPES, synthetic


@pytest.mark.parametrize("like", list(SHAPES))
def test_it_takes_the_shape_and_classes_of_a_known_set(like):
    shape, num_classes = SHAPES[like]
    loaded = synthetic(0, like=like, num_train=6, num_test=3)
    for split, count in (("train", 6), ("test", 3)):
        images, labels = loaded[split]
        assert images.shape == (count, *shape)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < num_classes
    assert loaded["num_classes"] == num_classes
    assert len(loaded["mean"]) == len(loaded["std"]) == shape[0]


@pytest.mark.parametrize("shape", [(7,), (2, 50), (3, 40, 20), (1, 5, 40, 33)])
def test_any_shape_is_made(shape):
    assert synthetic(0, shape=shape, num_classes=3, num_train=4)["train"][0].shape == (4, *shape)


def test_it_can_be_learned():
    options = {"shape": [1, 6, 6], "num_classes": 4, "num_train": 400, "num_test": 200}
    splits = load_data(DataConfig(name="synthetic", batch_size=50, options=options))
    torch.manual_seed(0)
    model = torch.nn.Linear(36, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(5):
        for inputs, labels in splits.train.epoch(epoch, [50] * 7):
            optimizer.zero_grad()
            cross_entropy(model(inputs.flatten(1)), labels).backward()
            optimizer.step()
    inputs, labels = splits.test.batch(torch.arange(200))
    assert model(inputs.flatten(1)).argmax(1).eq(labels).float().mean() > 0.9


def test_the_seed_decides_everything():
    first, again, other = (synthetic(seed, num_train=5) for seed in (0, 0, 1))
    for a, b in zip((*first["train"], *first["test"]), (*again["train"], *again["test"]), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first["train"][0], other["train"][0])


def test_less_noise_leaves_the_patterns_alone():
    images, labels = synthetic(0, num_classes=2, num_train=20, noise=0)["train"]
    for label in (0, 1):
        assert len(images[labels == label].unique(dim=0)) == 1


def test_pixels_scale_to_mean_nought_and_deviation_about_one():
    splits = load_data(DataConfig(name="synthetic", batch_size=50))
    inputs, _ = splits.train.batch(torch.arange(len(splits.train)))
    assert abs(inputs.mean()) < 0.1
    assert 0.5 < inputs.std() < 1.5


def test_large_images_of_many_classes_are_cheap():
    start = time.perf_counter()
    loaded = synthetic(0, like="imagenet", num_train=32, num_test=8)
    assert time.perf_counter() - start < 5  # patterns of full size alone would be 600 MB
    assert loaded["train"][0].nbytes == 32 * 3 * 224 * 224


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"like": "cifar10", "shape": [3, 8, 8]}, "Cannot combine data.options.like with shape or num_classes"),
        ({"like": "cifar10", "num_classes": 3}, "Cannot combine data.options.like with shape or num_classes"),
        ({"like": "cifar11"}, "unknown data set of known shape 'cifar11'; did you mean 'cifar10"),
        ({"shape": []}, "must hold a shape, num_classes"),
        ({"shape": [3, 0, 4]}, "must hold a shape, num_classes"),
        ({"num_classes": 0}, "must hold a shape, num_classes"),
        ({"num_train": 1}, "must hold a shape, num_classes"),
        ({"num_test": 0}, "must hold a shape, num_classes"),
        ({"noise": -1.0}, "noise of at least 0; .*-1.0"),
        ({"noise": float("nan")}, "noise of at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic(0, **options)
