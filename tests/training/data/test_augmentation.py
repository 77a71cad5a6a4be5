"""Augmentation and scaling beside torchvision's own transforms."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator
from torchvision.transforms import v2
from torchvision.transforms.functional import crop, hflip, pad

from suptickets_ray.training.data.augmentation import Augmentation, Scaling, random_crop, random_flip
from suptickets_ray.training.data.examples import Examples


def seeded(seed):
    return Generator().manual_seed(seed)


def pixels(*shape, seed=0):
    return torch.randint(256, shape, generator=seeded(seed), dtype=torch.uint8)


def offsets(count, padding, seed):
    """The offsets that a generator of this seed gives."""
    return torch.randint(2 * padding + 1, (2, count), generator=seeded(seed)).T.tolist()


MODES = [("zero", "constant"), ("reflect", "reflect")]


@pytest.mark.parametrize(("mode", "theirs"), MODES)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9), (3, 7, 4)])
def test_the_crop_of_every_offset_equals_torchvisions(mode, theirs, shape):
    padding, count = 2, 400
    image = pixels(*shape)
    images = image.expand(count, *shape)
    cropped = random_crop(images, padding, mode, seeded(1))
    padded = pad(image, [padding], padding_mode=theirs)
    drawn = offsets(count, padding, 1)
    assert len({tuple(offset) for offset in drawn}) == 25  # none is left out
    for result, (top, left) in zip(cropped, drawn, strict=True):
        assert torch.equal(result, crop(padded, top, left, *shape[1:]))


@pytest.mark.parametrize(("mode", "theirs"), MODES)
def test_a_crop_padded_by_all_but_one_pixel_equals_torchvisions(mode, theirs):
    images = pixels(50, 1, 4, 4)
    cropped = random_crop(images, 3, mode, seeded(2))
    for image, result, (top, left) in zip(images, cropped, offsets(50, 3, 2), strict=True):
        assert torch.equal(result, crop(pad(image, [3], padding_mode=theirs), top, left, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16])
def test_other_types_than_uint8_are_cropped_alike(dtype):
    images = pixels(20, 3, 6, 5).div(2, rounding_mode="floor")  # all of them are whole in bfloat16
    expected = random_crop(images, 2, "reflect", seeded(3))
    got = random_crop(images.to(dtype), 2, "reflect", seeded(3))
    assert got.dtype == dtype
    assert torch.equal(got.to(torch.uint8), expected)


def test_a_crop_without_padding_is_the_image():
    images = pixels(3, 3, 4, 4)
    assert torch.equal(random_crop(images, 0, "reflect", seeded(0)), images)


def test_each_image_is_its_own_mirror_or_itself():
    images = pixels(64, 3, 5, 6)
    flips = torch.rand(64, generator=seeded(4)).lt(0.5).tolist()
    assert 0 < sum(flips) < 64
    for image, result, flipped in zip(images, random_flip(images, seeded(4)), flips, strict=True):
        assert torch.equal(result, hflip(image) if flipped else image)


def test_an_image_lying_channel_by_channel_in_memory_is_augmented_alike():
    images = pixels(8, 3, 6, 6)
    augmentation = Augmentation(2, "reflect", True)
    others = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augmentation(images, seeded(5)), augmentation(others, seeded(5)))


def test_offsets_are_uniform_over_all_positions():
    """n = 50,000 crops, seed 0; 81 offsets, chi-square of 80 degrees of freedom: mean 80, variance 160."""
    count, padding = 50_000, 4
    image = torch.arange(49, dtype=torch.uint8).view(1, 7, 7)
    lookup = {}
    padded = pad(image, [padding], padding_mode="reflect")
    for top, left in itertools.product(range(9), repeat=2):
        lookup[tuple(crop(padded, top, left, 7, 7).flatten().tolist())] = len(lookup)
    assert len(lookup) == 81  # each crop tells its offset
    cropped = random_crop(image.expand(count, 1, 7, 7), padding, "reflect", seeded(0)).flatten(1)
    found, numbers = cropped.unique(dim=0, return_counts=True)
    assert {tuple(row) for row in found.tolist()} == set(lookup)
    expected = count / 81
    chi_square = float(((numbers - expected) ** 2 / expected).sum())
    assert abs(chi_square - 80) < 4 * math.sqrt(2 * 80)


def test_half_of_the_images_are_flipped():
    """n = 40,000 flips, seed 0."""
    images = torch.tensor([[[[0, 1]]]], dtype=torch.uint8).expand(40_000, 1, 1, 2)
    share = random_flip(images, seeded(0))[:, 0, 0, 0].float().mean()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 40_000)


def test_mean_pixels_equal_those_of_torchvisions_pipeline():
    """n = 4,000 draws of one image on each side, seed 0; each pixel's means differ by < 5 standard errors."""
    count, image = 4000, pixels(3, 8, 8)
    ours = Augmentation(2, "zero", True)(image.expand(count, 3, 8, 8), seeded(0)).float()
    pipeline = v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    opened = Image.fromarray(image.permute(1, 2, 0).numpy())
    theirs = torch.stack([torch.from_numpy(np.array(pipeline(opened))) for _ in range(count)]).permute(0, 3, 1, 2)
    theirs = theirs.float()
    error = ((ours.var(0) + theirs.var(0)) / count).sqrt()
    # 192 pixels are compared: one beyond 5 standard errors comes once in 9,000 runs
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_scaling_equals_totensor_and_normalize(channels):
    mean, std = [0.4914, 0.4822, 0.4465][:channels], [0.2470, 0.2435, 0.2616][:channels]
    images = torch.arange(256, dtype=torch.uint8).repeat(channels).view(1, channels, 16, 16)
    array = images[0].permute(1, 2, 0).numpy()
    pipeline = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)],
    )
    expected = pipeline(Image.fromarray(array if channels == 3 else array[..., 0]))
    scaled = Scaling(mean, std)(images)[0]
    assert scaled.dtype == torch.float32
    assert (scaled - expected).abs().max() < 1e-6


def test_scaling_without_statistics_only_makes_pixels_fractions():
    images = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    assert Scaling()(images)[0].tolist() == pytest.approx([0.0, 0.2, 1.0])


def test_what_is_floating_is_scaled_by_mean_and_deviation_alone():
    assert Scaling([1.0], [2.0])(torch.tensor([[1.0, 5.0]])).tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("statistics", [(), ([1.0], [2.0])])
def test_all_floating_inputs_become_float32(dtype, statistics):
    assert Scaling(*statistics)(torch.ones(2, 1, dtype=dtype)).dtype == torch.float32


def test_whole_numbers_are_indices_and_stay():
    words = torch.tensor([[3, 1]])
    assert Scaling([1.0], [2.0])(words) is words


def test_statistics_may_be_numbers_arrays_or_tensors():
    images = pixels(2, 3, 2, 2)
    expected = Scaling([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])(images)
    frozen = np.array([0.5])
    frozen.flags.writeable = False  # as the object store gives it
    for mean, std in ((0.5, 0.25), (frozen, np.array([0.25])), (torch.tensor([0.5] * 3), torch.tensor([0.25] * 3))):
        assert torch.allclose(Scaling(mean, std)(images), expected)


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], [0.1, 0.2]), ([0.5], [0.0]), ([0.5], [math.nan]), ([math.inf], [1.0]), ("a", "b")]
)
def test_statistics_that_make_no_sense_are_refused(mean, std):
    with pytest.raises(ValueError, match="mean and std must hold one number per channel"):
        Scaling(mean, std)


def test_statistics_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="one number per channel; got 3 for inputs of shape \\(1, 4, 4\\)"):
        Scaling([0.5] * 3, [0.5] * 3)(pixels(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be a whole number of pixels, at least 0; got -1"),
        ({"crop_padding": 1.5}, "crop_padding must be a whole number"),
        ({"crop_padding_mode": "reflct"}, "unknown crop_padding_mode 'reflct'; did you mean 'reflect'"),
        ({"flip": "yes"}, "flip must be true or false; got 'yes'"),
    ],
)
def test_an_augmentation_of_a_data_set_is_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)


def test_the_same_generator_gives_the_same_batch_and_inputs_never_change():
    images = pixels(16, 3, 6, 6)
    before, augmentation = images.clone(), Augmentation(2, "reflect", True)
    first, second = (augmentation(images, seeded(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augmentation(images, seeded(8)))
    Scaling([0.5], [0.25])(images)
    floats = images.float()
    Scaling([0.5], [0.25])(floats)
    assert torch.equal(images, before)
    assert torch.equal(floats, before.float())


def augmented(**changes):
    images, labels = pixels(12, 3, 6, 6), torch.arange(12)
    return Examples((images, labels), augmentation=Augmentation(2, "zero", True), **changes)


def test_an_epoch_is_a_function_of_seed_and_rank():
    examples = augmented()

    def read(seed, rank):
        return [(inputs, labels) for inputs, labels in examples.epoch(seed, [6, 6], rank=rank, world_size=2)]

    for (a, labels_a), (b, labels_b) in zip(read(1, 0), read(1, 0), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(labels_a, labels_b)
    assert not torch.equal(read(1, 0)[0][0], read(2, 0)[0][0])
    seen = torch.cat([labels for rank in (0, 1) for _, labels in read(1, rank)])
    assert sorted(seen.tolist()) == list(range(12))


def test_ranks_draw_crops_and_flips_of_their_own():
    examples = augmented()
    first, second = (torch.randint(100, (50,), generator=examples.augmentation_generator(1, rank)) for rank in (0, 1))
    assert not torch.equal(first, second)


def test_reading_by_index_and_in_order_is_never_augmented():
    examples = augmented()
    expected = Scaling()(pixels(12, 3, 6, 6))
    assert torch.equal(examples.batch(torch.arange(12))[0], expected)
    assert torch.equal(torch.cat([inputs for inputs, _ in examples.batches(5)]), expected)


def test_without_augmentation_no_generator_is_made():
    assert Examples((pixels(2, 1, 2, 2), torch.arange(2))).augmentation_generator(0, 0) is None
