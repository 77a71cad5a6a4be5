import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from suptickets_ray.config import DataConfig
from suptickets_ray.training.data import load_data
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.data.splits import make_splits, redraw_labels


def pairs(n, classes=3):
    return torch.arange(n, dtype=torch.float32).view(n, 1), torch.arange(n) % classes


def loaded(**changes):
    return {"train": pairs(10), "validation": pairs(4), "test": pairs(5), **changes}


def config(**changes):
    return DataConfig(**({"name": "digits", "batch_size": 2} | changes))


def test_digits_are_split_disjointly_and_always_alike():
    splits, again = (load_data(config()) for _ in range(2))
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [500, 297, 1000]
    assert (splits.num_classes, splits.sample_shape) == (10, (1, 8, 8))
    everything = torch.cat(
        [split.batch(torch.arange(len(split)))[0] for split in (splits.train, splits.validation, splits.test)]
    )
    from sklearn.datasets import load_digits

    def rows(images):
        return sorted(map(tuple, images.reshape(1797, 64).tolist()))

    bunch = load_digits()
    assert rows(everything * 16) == rows(torch.from_numpy(bunch.images))
    order = np.random.default_rng(config().split_seed).permutation(1797)
    assert torch.equal(everything[-1000:], torch.from_numpy(bunch.images[order][:1000, None]).float() / 16)
    assert torch.equal(splits.test.all_labels(), torch.from_numpy(bunch.target[order][:1000]))
    assert torch.equal(splits.train.batch(torch.arange(500))[0], again.train.batch(torch.arange(500))[0])


def test_another_split_seed_gives_another_split():
    a, b = (load_data(config(split_seed=seed)).train.all_labels() for seed in (0, 1))
    assert not torch.equal(a, b)


def test_noise_redraws_its_share_of_the_training_labels_and_no_other():
    clean, noisy = load_data(config()), load_data(config(label_noise=0.2))
    wrong = int(clean.train.all_labels().ne(noisy.train.all_labels()).sum())
    # 100 of 500 are redrawn, each is right by chance once in 10 times: 90 expected, standard deviation 3
    assert 78 <= wrong <= 100
    assert torch.equal(clean.validation.all_labels(), noisy.validation.all_labels())
    assert torch.equal(clean.test.all_labels(), noisy.test.all_labels())
    assert torch.equal(noisy.train.batch(torch.arange(500))[1], noisy.train.all_labels())


def test_redrawing_all_labels_makes_all_classes_equally_likely():
    n = 20_000
    counts = redraw_labels(torch.zeros(n, dtype=torch.long), 1.0, 4, seed=0).bincount(minlength=4)
    standard_error = (0.25 * 0.75 / n) ** 0.5
    assert (counts / n - 0.25).abs().max() < 4 * standard_error


def kept(n, size, **settings):
    """Which of n training examples, all told apart by their labels, a smaller training set holds."""
    data = {"train": pairs(n, n), "validation": pairs(4), "test": pairs(5)}
    return make_splits(data, config(num_train_examples=size, **settings)).train.all_labels().tolist()


def test_train_size_draws_from_all_examples_by_the_split_seed():
    """Of 1,000, sorted by class as folders are; the first ones would be of one class."""
    chosen = kept(1000, 100)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 100
    assert 350 < sum(chosen) / 100 < 650  # standard error 29
    assert kept(1000, 100) == chosen != kept(1000, 100, split_seed=1)
    assert kept(1000, 1000) == list(range(1000))


def test_a_larger_training_set_holds_the_smaller_ones():
    assert set(kept(1000, 100)) < set(kept(1000, 300))


def test_validation_is_cut_out_of_training_disjointly_and_always_alike():
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1)
    data = {"train": (images, torch.arange(200)), "test": pairs(5), "augmentation": {"flip": True}}
    splits, again = (make_splits(data, config(validation_share=0.25)) for _ in range(2))
    other = make_splits(data, config(validation_share=0.25, split_seed=1))
    train, validation = splits.train.all_labels().tolist(), splits.validation.all_labels().tolist()
    assert (len(train), len(validation)) == (150, 50)
    assert sorted(train + validation) == list(range(200))
    assert again.validation.all_labels().tolist() == validation != other.validation.all_labels().tolist()
    assert splits.train.augmentation.does_something
    assert not splits.validation.augmentation.does_something
    assert not splits.test.augmentation.does_something


def test_a_tenth_is_cut_out_when_nobody_says_how_much():
    splits = make_splits({"train": pairs(50), "test": pairs(5)}, config())
    assert (len(splits.train), len(splits.validation)) == (45, 5)


def test_the_recipes_augmentation_overrides_the_data_sets():
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    own = {"crop_padding": 2, "crop_padding_mode": "reflect", "flip": True}
    data = {"train": (images, torch.arange(20)), "test": (images, torch.arange(20)), "augmentation": own}
    augmentation = make_splits(data, config(crop_padding=3, flip=False)).train.augmentation
    assert (augmentation.crop_padding, augmentation.crop_padding_mode, augmentation.flip) == (3, "reflect", False)
    assert not make_splits(data, config(crop_padding=0, flip=False)).train.augmentation.does_something
    with pytest.raises(ValueError, match="data.crop_padding must be below 8, the images' size, to reflect; got 8"):
        make_splits(data, config(crop_padding=8))
    assert make_splits(data, config(crop_padding=8, crop_padding_mode="zero")).train.augmentation.crop_padding == 8


def test_a_mode_without_a_crop_is_no_matter_to_inputs_that_are_no_images():
    data = loaded(augmentation={"crop_padding_mode": "reflect"})
    assert make_splits(data, config()).sample_shape == (1,)


class NoPairs(Dataset):
    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


@pytest.mark.parametrize(
    "examples",
    [
        ((torch.zeros(2), 0), (torch.zeros(3), 1)),
        ((object(), 0), (object(), 1)),
        ((torch.zeros(2), "cat"), (torch.zeros(2), "dog")),
        ((torch.zeros(2),), (torch.zeros(2),)),
    ],
)
def test_a_dataset_that_gives_no_pairs_is_refused(examples):
    with pytest.raises(ValueError, match="a Dataset must give pairs of an input, a tensor of one shape, and a label"):
        Examples(NoPairs(*examples)).batch(torch.arange(2))


def test_labels_that_are_not_whole_become_float32_of_any_shape():
    examples = Examples(NoPairs((torch.zeros(2), 0.5), (torch.zeros(2), 1.5)))
    assert torch.equal(examples.all_labels(), torch.tensor([0.5, 1.5]))
    assert Examples((torch.zeros(3, 1), torch.ones(3, 2).bool())).all_labels().dtype == torch.float32
    assert Examples(
        NoPairs((torch.zeros(2), torch.arange(3)), (torch.zeros(2), torch.arange(3)))
    ).all_labels().shape == (2, 3)


def test_inputs_may_be_a_tuple_or_a_dict_of_tensors():
    ids, mask = torch.arange(12).view(6, 2), torch.ones(6, 3)
    for inputs in ({"ids": ids, "mask": mask}, (ids, mask)):
        examples = Examples((inputs, torch.arange(6)))
        keys = list(inputs) if isinstance(inputs, dict) else range(2)
        found, labels = examples.batch(torch.tensor([4, 1]))
        assert type(found) is type(inputs)
        assert torch.equal(found[keys[0]], ids[[4, 1]])
        assert torch.equal(found[keys[1]], mask[[4, 1]])
        assert labels.tolist() == [4, 1]
        assert examples.sample_size == 5
    from_dataset = Examples(NoPairs(*(({"ids": ids[n], "mask": mask[n]}, n) for n in range(6))))
    assert torch.equal(from_dataset.batch(torch.tensor([4]))[0]["ids"], ids[[4]])


def test_labels_of_any_whole_type_become_int64():
    examples = Examples(NoPairs(*((torch.zeros(2), torch.tensor(n, dtype=torch.int32)) for n in range(3))))
    assert examples.batch(torch.tensor([2, 1]))[1].dtype == torch.int64
    assert Examples((torch.zeros(3, 1), torch.arange(3, dtype=torch.uint8))).batch(torch.tensor([2]))[1].tolist() == [2]


class Squares(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index >= 10:
            raise IndexError
        return torch.tensor([float(index**2)]), index % 2


def test_a_dataset_of_torch_reads_like_a_pair_of_tensors():
    splits = make_splits(loaded(train=Squares()), config(label_noise=0.5))
    inputs, labels = splits.train.batch(torch.tensor([3, 1]))
    assert inputs.tolist() == [[9.0], [1.0]]
    assert labels.tolist() == splits.train.all_labels()[[3, 1]].tolist()
    assert splits.num_classes == 2


def test_a_dataset_is_read_through_once_for_its_labels():
    reads = []

    class Counted(Squares):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    examples = Examples(Counted())
    assert examples.all_labels().tolist() == examples.all_labels().tolist() == [0, 1] * 5
    assert reads == list(range(10))


def test_batches_hold_every_example_once():
    assert [labels.tolist() for _, labels in Examples(pairs(5, 9)).batches(2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (loaded(), {"num_train_examples": 11}, "data.num_train_examples must be at most 10"),
        (loaded(), {"batch_size": 11}, "data.batch_size must be at most the 10 training examples; got 11"),
        ({"train": pairs(3), "validation": pairs(3)}, {}, "must return a 'test' set"),
        (loaded(validaton=pairs(3)), {}, "must return known keys; got 'validaton'; did you mean 'validation'"),
        (loaded(), {"validation_share": 0.2}, "validation_share has no effect with data set"),
        (loaded(), {"flip": True}, "data.crop_padding and data.flip must have images"),
        (loaded(), {"crop_padding_mode": "zero"}, "crop_padding_mode has no effect without data.crop_padding"),
        (loaded(augmentation={"rotate": 3}), {}, "augmentation must hold crop_padding, .*got 'rotate'"),
        (loaded(mean=[0.1, 0.2], std=[1.0]), {}, "mean and std must hold one number per channel"),
        (loaded(train=(torch.zeros(3, 1), torch.zeros(2))), {}, "the train set must be a pair of tensors"),
        (loaded(test=iter([])), {}, "the test set must be a pair of tensors or a map-style Dataset"),
        (loaded(validation=pairs(0)), {}, "the validation set must hold at least one example"),
        ([1, 2], {}, "must return a dict of train, validation and test; got list"),
    ],
)
def test_what_is_no_data_set_is_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        make_splits(data, config(**settings))


def test_settings_that_a_data_set_does_not_take_are_refused():
    with pytest.raises(ValueError, match="data.root has no effect with data set 'digits'"):
        load_data(config(root="/data"))
    with pytest.raises(ValueError, match="data.options.size has no effect"):
        load_data(config(options={"size": 3}))
