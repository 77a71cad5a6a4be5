"""Sets that are read in blocks: order, shares of the ranks, readers, and equality of all ways to read."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from suptickets_ray.config import DataConfig
from suptickets_ray.training.data.convert import convert
from suptickets_ray.training.data.image_folder import image_folder
from suptickets_ray.training.data.parquet import parquet
from suptickets_ray.training.data.splits import make_splits
from suptickets_ray.training.data.streaming import (
    WINDOW_BLOCKS,
    BlockSource,
    Job,
    Reading,
    StreamedExamples,
    epoch_pieces,
    fetch_by_threads,
    reading_of,
)


class Numbered(BlockSource):
    """Images of one pixel that says its position; label = position modulo 7. Remembers what was read."""

    def __init__(self, size, block_size=16, fails_at=None):
        self.labels, self.block_size, self.fails_at = torch.arange(size) % 7, block_size, fails_at
        self.reads, self.lock = [], threading.Lock()

    def read(self, indices, seed):
        assert list(indices) == sorted(indices)
        with self.lock:
            self.reads.append((list(indices), seed))
        if self.fails_at in indices:
            raise ValueError(f"image {self.fails_at} must be an image")
        return torch.tensor(indices, dtype=torch.float32).view(-1, 1, 1, 1)


def positions(batches):
    return [inputs.flatten().int().tolist() for inputs, _ in batches]


def flat(lists):
    return [element for part in lists for element in part]


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@settings(deadline=None, max_examples=100)
@given(
    size=st.integers(1, 700),
    block_size=st.sampled_from([1, 2, 16, 128]),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_ranks_read_disjoint_shares_of_exact_size(size, block_size, world_size, seed, data):
    batch_size = data.draw(st.integers(world_size, max(size, world_size)))
    sizes = [batch_size] * data.draw(st.integers(0, size // batch_size))
    source = Numbered(size, block_size)
    seen = []
    for rank in range(world_size):
        batches = list(StreamedExamples(source).epoch(seed, sizes, rank=rank, world_size=world_size))
        assert [len(labels) for _, labels in batches] == [len(range(rank, batch, world_size)) for batch in sizes]
        for inputs, labels in batches:
            assert torch.equal(inputs.flatten().long() % 7, labels)
        seen += flat(positions(batches))
    assert len(seen) == len(set(seen)) == sum(sizes)
    assert sorted(flat(indices for indices, _ in source.reads)) == sorted(seen)  # nothing was read in vain


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 2000), st.integers(0, 3), st.sampled_from([1, 7, 128]), st.data())
def test_stretches_of_an_epoch_join_to_a_permutation(size, seed, block_size, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
    pieces = []
    for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
        mine = epoch_pieces(size, seed, start, stop - start, block_size)
        assert sum(map(len, mine)) == stop - start
        pieces += mine
    assert sorted(position for piece in pieces for position in piece) == list(range(size))


def epoch(source, num_readers=2, seed=1, count=40):
    examples = StreamedExamples(source)
    examples.num_readers = num_readers
    return positions(examples.epoch(seed, [10] * count))


def test_the_order_is_a_function_of_the_seed_and_not_of_the_readers():
    expected = epoch(Numbered(400), 1)
    assert all(epoch(Numbered(400), num_readers) == expected for num_readers in (2, 5))
    assert epoch(Numbered(400), 2, seed=2) != expected
    assert epoch(Numbered(400, block_size=32)) != expected


def test_examples_are_mixed_over_blocks():
    """Block 16, window 8: in 400 positions neighbours come apart, and batches hold several blocks."""
    batches = epoch(Numbered(400))
    order = flat(batches)
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 20
    assert np.mean([len({position // 16 for position in batch}) for batch in batches]) > 4


def test_readers_are_asked_for_a_block_at_a_time_and_never_far_ahead():
    source = Numbered(160 * 16)
    examples, given, ahead = StreamedExamples(source), 0, []
    for inputs, _ in examples.epoch(0, [16] * 160):
        given += len(inputs)
        ahead.append(len(source.reads) - given // 16)
    assert max(ahead[:-1]) <= 8 + 1 + examples.num_readers + 1
    steady = ahead[5:140]
    assert max(steady) - min(steady) <= 3  # one in, one out: no stalls for a whole window


def test_a_limited_epoch_reads_only_what_it_gives():
    source = Numbered(10_000)
    assert sum(map(len, positions(StreamedExamples(source).epoch(0, [10, 10, 10])))) == 30
    assert sum(len(indices) for indices, _ in source.reads) == 30


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_an_epoch_early_leaves_no_threads(taken):
    source = Numbered(5000)
    batches = StreamedExamples(source).epoch(0, [10] * 500)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert not readers()
    assert len(source.reads) < 20


def test_a_finished_epoch_leaves_no_threads():
    examples = StreamedExamples(Numbered(200))
    list(examples.epoch(0, [10] * 20))
    list(examples.batches(10))
    assert not readers()


def test_a_readers_error_arrives_and_leaves_no_threads():
    examples = StreamedExamples(Numbered(200, fails_at=50))
    with pytest.raises(ValueError, match="image 50 must be an image") as caught:
        list(examples.epoch(0, [10] * 20))
    del caught
    assert not readers()


def test_jobs_are_drawn_as_they_are_needed():
    drawn = []

    def jobs():
        for number in range(100):
            drawn.append(number)
            yield Job([number], None)

    images = fetch_by_threads(Numbered(100), jobs(), 3)
    assert [float(next(images)) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(drawn) <= 9
    images.close()


def test_an_epochs_crops_depend_on_its_seed_and_evaluation_has_none():
    source = Numbered(100)
    examples = StreamedExamples(source)
    for seed in (1, 2):
        list(examples.epoch(seed, [10] * 10))
        list(examples.epoch(seed, [10] * 5, rank=1, world_size=2))
    crops = {crop for _, crop in source.reads}
    assert len(crops) == 2
    assert None not in crops
    source.reads.clear()
    list(examples.batches(10))
    examples.batch(torch.tensor([5, 3]))
    assert {crop for _, crop in source.reads} == {None}


def test_batches_are_in_order_and_by_index_any_order_will_do():
    examples = StreamedExamples(Numbered(25), torch.arange(5, 25, 2))
    assert positions(examples.batches(4)) == [[5, 7, 9, 11], [13, 15, 17, 19], [21, 23]]
    inputs, labels = examples.batch(torch.tensor([9, 0, 4, 0]))
    assert inputs.flatten().tolist() == [23, 5, 13, 5]
    assert labels.tolist() == [2, 5, 6, 5]
    assert examples.all_labels().tolist() == [index % 7 for index in range(5, 25, 2)]


def splits_of(size=200, **settings):
    loaded = {"train": Numbered(size), "test": Numbered(30), "num_classes": 7}
    return make_splits(loaded, DataConfig(name="own", batch_size=10, **settings))


def test_the_validation_cut_is_disjoint_and_decided_by_the_split_seed():
    splits, again, other = splits_of(), splits_of(), splits_of(split_seed=1)
    train, validation = (flat(positions(part.batches(16))) for part in (splits.train, splits.validation))
    assert (len(train), len(validation)) == (180, 20)
    assert sorted(train + validation) == list(range(200))
    assert flat(positions(again.validation.batches(16))) == validation
    assert flat(positions(other.validation.batches(16))) != validation


def test_a_smaller_training_set_is_drawn_from_all_of_it():
    whole = set(flat(positions(splits_of().train.batches(16))))
    chosen = flat(positions(splits_of(num_train_examples=50).train.batches(16)))
    assert len(chosen) == 50
    assert chosen == sorted(chosen)
    assert set(chosen) < whole
    assert max(chosen) > 150  # the first ones of a folder would be of its first classes
    seen = flat(positions(splits_of(num_train_examples=50).train.epoch(0, [10] * 5)))
    assert sorted(seen) == chosen


def test_noisy_labels_belong_to_their_images_in_every_way_of_reading():
    splits = splits_of(label_noise=0.5, num_train_examples=100)
    chosen = flat(positions(splits.train.batches(16)))
    noisy = dict(zip(chosen, splits.train.all_labels().tolist(), strict=True))
    wrong = sum(label != position % 7 for position, label in noisy.items())
    assert 30 <= wrong <= 50  # 50 are redrawn, each is right by chance once in 7 times
    for batches in (splits.train.batches(9), splits.train.epoch(0, [10] * 10)):
        for inputs, labels in batches:
            assert [noisy[position] for position in inputs.flatten().int().tolist()] == labels.tolist()
    inputs, labels = splits.train.batch(torch.tensor([40, 3]))
    assert [noisy[position] for position in inputs.flatten().int().tolist()] == labels.tolist()
    for part in (splits.validation, splits.test):
        for inputs, labels in part.batches(9):
            assert torch.equal(inputs.flatten().long() % 7, labels)


def test_the_number_of_readers_is_the_recipes():
    splits = splits_of(reader_threads=5)
    assert [part.num_readers for part in (splits.train, splits.validation, splits.test)] == [5, 5, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 training and 20 validation pictures of 3 classes."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for split, count in (("train", 300), ("val", 20)):
        for number in range(count):
            path = root / "images" / split / "abc"[number % 3] / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((10 + number % 5, 12)).save(path)
    convert(image_folder(str(root / "images"), 8), str(root / "parquet"), rows_per_file=100)
    return root


@pytest.mark.parametrize("options", [{}, {"block_size": 32}])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_folder_and_its_parquet_give_bit_equal_epochs(folder, options, world_size):
    config = DataConfig(name="any", batch_size=20, label_noise=0.1, num_train_examples=250)
    splits = [
        make_splits(image_folder(str(folder / "images"), 8, **options), config),
        make_splits(parquet(str(folder / "parquet"), 8, **options), config),
    ]
    for rank in range(world_size):
        epochs = [part.train.epoch(4, [20] * 12, rank=rank, world_size=world_size) for part in splits]
        for (one, one_labels), (other, other_labels) in zip(*epochs, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one_labels, other_labels)
    for (one, one_labels), (other, other_labels) in zip(
        splits[0].validation.batches(16), splits[1].validation.batches(16), strict=True
    ):
        assert torch.equal(one, other)
        assert torch.equal(one_labels, other_labels)


def test_all_threads_together_read_what_one_reads(folder):
    source = parquet(str(folder / "parquet"), 8)["train"]
    jobs = [Job(list(range(start, start + 20)), 3) for start in range(0, 300, 20)]
    one, many = (torch.cat(list(fetch_by_threads(source, jobs, number))) for number in (1, 6))
    assert torch.equal(one, many)


def sorted_examples(order):
    class Stored(BlockSource):
        labels = order

        def read(self, indices, seed):
            return torch.zeros(len(indices), 1, 1, 1, dtype=torch.uint8)

    return StreamedExamples(Stored())


def test_examples_stored_in_the_order_of_their_labels_are_mixed_nearly_as_shuffled_ones_with_a_warning():
    examples = sorted_examples(torch.arange(20_000) * 100 // 20_000)
    with pytest.warns(UserWarning, match=r"in blocks of 128 holds \d\d classes, a shuffled one 72. They are read in"):
        batches = [labels for _, labels in examples.epoch(1, [128] * (20_000 // 128))]
    assert len(torch.cat(batches)) == 128 * (20_000 // 128)
    assert sum(len(labels.unique()) for labels in batches) / len(batches) > 0.85 * 72


def test_examples_in_random_order_are_read_in_whole_blocks_without_a_warning():
    labels = torch.randint(100, (5_000,), generator=torch.Generator().manual_seed(0))
    assert reading_of(labels, 128) == Reading(128, WINDOW_BLOCKS)
