"""Conversion to Parquet: everything comes back as it was, and a broken-off conversion goes on."""

import json

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from suptickets_ray.config import DataConfig
from suptickets_ray.training.data import convert as convert_module
from suptickets_ray.training.data import load_source
from suptickets_ray.training.data.convert import ROWS_PER_GROUP, convert
from suptickets_ray.training.data.image_folder import image_folder
from suptickets_ray.training.data.parquet import parquet
from suptickets_ray.training.data.splits import make_splits

CIFAR_LIKE = {
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "augmentation": {"crop_padding": 4, "crop_padding_mode": "reflect", "flip": True},
    "num_classes": 12,
}


def made(count, shape=(3, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return images, torch.randint(10, (count,), generator=generator)


def cifar_like():
    return {"train": made(70), "test": made(9, seed=1), **CIFAR_LIKE}


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def assert_same(loaded, back):
    """All of the splits in memory."""
    for split in ("train", "validation", "test"):
        assert (split in loaded) == (split in back)
        if split in loaded:
            for one, other in zip(loaded[split], back[split], strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)


def assert_equal_epochs(loaded, back, seed=3):
    """Scaling, augmentation, cuts and all."""
    config = DataConfig(name="any", batch_size=4, label_noise=0.2, num_train_examples=20)
    ours, theirs = make_splits(loaded, config), make_splits(back, config)
    assert ours.num_classes == theirs.num_classes
    for split in ("train", "validation", "test"):
        for one, other in zip(getattr(ours, split).batches(6), getattr(theirs, split).batches(6), strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    for one, other in zip(ours.train.epoch(seed, [4] * 5), theirs.train.epoch(seed, [4] * 5), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_images_of_bytes_come_back_with_their_statistics_and_augmentation(tmp_path):
    loaded = cifar_like()
    assert convert(loaded, str(tmp_path), rows_per_file=50) == 3
    assert files(tmp_path) == [
        "test/part-00000-of-00001.parquet",
        "train/part-00000-of-00002.parquet",
        "train/part-00001-of-00002.parquet",
    ]
    back = parquet(str(tmp_path))
    assert_same(loaded, back)
    assert {key: back[key] for key in CIFAR_LIKE} == json.loads(json.dumps(CIFAR_LIKE))
    assert_equal_epochs(loaded, back)


def test_digits_come_back_with_their_validation_set(tmp_path):
    loaded = load_source(DataConfig(name="digits"))
    convert(loaded, str(tmp_path))
    back = parquet(str(tmp_path))
    assert_same(loaded, back)
    assert back["num_classes"] == 10
    assert_equal_epochs(loaded, back)


def test_lines_of_numbers_come_back(tmp_path):
    loaded = load_source(DataConfig(name="mnist1d", options={"num_samples": 100}))
    convert(loaded, str(tmp_path))
    assert_same(loaded, parquet(str(tmp_path)))


def test_lists_of_tensors_are_pairs_too(tmp_path):
    loaded = {"train": list(made(40)), "test": list(made(5))}
    convert(loaded, str(tmp_path))
    assert_same(loaded, parquet(str(tmp_path)))


def write_folder(root, seed=0):
    rng = np.random.default_rng(seed)
    for split, count in (("train", 30), ("val", 5)):
        for number in range(count):
            path = root / split / "abc"[number % 3] / f"{number}.{'jpg' if number % 2 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((12 + number % 7, 14)).save(path)
    return root


def test_a_folders_images_keep_their_bytes(tmp_path):
    source = write_folder(tmp_path / "images")
    loaded = image_folder(str(source), 8)
    convert(loaded, str(tmp_path / "out"))
    back = parquet(str(tmp_path / "out"), 8)
    everything = list(range(30))
    assert [content for _, content in back["train"].contents(everything)] == [
        (source / "train" / path).read_bytes() for path in loaded["train"].paths
    ]
    assert back["train"].labels.tolist() == loaded["train"].labels.tolist()
    assert back["num_classes"] == 3
    assert_equal_epochs(loaded, back)


def test_a_folder_in_memory_becomes_tensors(tmp_path):
    loaded = image_folder(str(write_folder(tmp_path / "images")), 8, in_memory=True)
    convert(loaded, str(tmp_path / "out"))
    back = parquet(str(tmp_path / "out"))
    assert_same(loaded, back)
    assert_equal_epochs(loaded, back)


def test_a_folder_gives_the_same_epochs_as_its_parquet_also_where_both_are_held_in_memory(tmp_path):
    source = write_folder(tmp_path / "images")
    convert(image_folder(str(source), 8), str(tmp_path / "out"))
    options = {"image_size": 8, "in_memory": True}
    assert_equal_epochs(image_folder(str(source), **options), parquet(str(tmp_path / "out"), **options))


def test_labels_of_two_kinds_are_classes_too(tmp_path):
    train = torch.zeros(4, 2), torch.tensor([True, False, True, True])
    convert({"train": train, "test": train}, str(tmp_path))
    assert parquet(str(tmp_path))["train"][1].tolist() == [1, 0, 1, 1]


def test_parquet_becomes_the_same_parquet(tmp_path):
    convert(image_folder(str(write_folder(tmp_path / "images")), 8), str(tmp_path / "one"))
    convert(parquet(str(tmp_path / "one"), 8), str(tmp_path / "two"), rows_per_file=7)
    one, two = (parquet(str(tmp_path / name), 8)["train"] for name in ("one", "two"))
    assert [content for _, content in one.contents(range(30))] == [content for _, content in two.contents(range(30))]
    convert(cifar_like(), str(tmp_path / "three"))
    convert(parquet(str(tmp_path / "three"), in_memory=False), str(tmp_path / "four"), rows_per_file=7)
    assert_same(cifar_like(), parquet(str(tmp_path / "four")))


class Own(Dataset):
    """Of tensors or arrays, with labels of any whole type."""

    def __init__(self, size, make=torch.tensor, label=int):
        self.size, self.make, self.label = size, make, label

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index >= self.size:
            raise IndexError
        return self.make([[float(index), 0.5]]), self.label(index % 3)


@pytest.mark.parametrize("make", [torch.tensor, np.array])
@pytest.mark.parametrize("label", [int, np.int64, torch.tensor])
def test_a_dataset_of_ones_own_comes_back(tmp_path, make, label):
    convert({"train": Own(40, make, label), "test": Own(3, make, label)}, str(tmp_path))
    images, labels = parquet(str(tmp_path))["train"]
    assert images.tolist() == [[[float(index), 0.5]] for index in range(40)]
    assert images.dtype == (torch.float32 if make is torch.tensor else torch.float64)
    assert labels.tolist() == [index % 3 for index in range(40)]


def test_statistics_of_arrays_and_tensors_are_kept(tmp_path):
    statistics = {"mean": np.array([0.1, 0.2, 0.3]), "std": torch.tensor([0.5, 0.5, 0.25]), "num_classes": np.int64(11)}
    convert({**cifar_like(), **statistics}, str(tmp_path))
    back = parquet(str(tmp_path))
    assert (back["mean"], back["std"], back["num_classes"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.25], 11)


def test_row_groups_are_small_and_pages_have_check_sums(tmp_path):
    convert({**cifar_like(), "test": made(1000)}, str(tmp_path), rows_per_file=900)
    path = tmp_path / "test" / "part-00000-of-00002.parquet"
    footer = pq.read_metadata(path)
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [ROWS_PER_GROUP] * 28 + [4]
    whole = bytearray(path.read_bytes())
    whole[footer.row_group(3).column(0).data_page_offset + 300] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=f"{path} must be a whole Parquet file; it is damaged"):
        parquet(str(tmp_path))


def test_progress_is_told_file_by_file(tmp_path):
    told = []
    convert(cifar_like(), str(tmp_path), rows_per_file=30, on_progress=lambda *report: told.append(report))
    assert told == [("train", 30, 70), ("train", 60, 70), ("train", 70, 70), ("test", 9, 9)]
    again = []
    assert convert(cifar_like(), str(tmp_path), rows_per_file=30, on_progress=lambda *report: again.append(report)) == 0
    assert again == told


class Breaks(Own):
    """Fails at the 50th example, while it is told to."""

    broken = True

    def __getitem__(self, index):
        if self.broken and index == 50:
            raise OSError("the disk went away")
        return super().__getitem__(index)


def test_after_a_failure_only_what_is_missing_is_written(tmp_path):
    source = Breaks(70)
    loaded = {"train": source, "test": Own(3)}
    with pytest.raises(ValueError, match="Cannot read example 50 of the train set: .*the disk went away"):
        convert(loaded, str(tmp_path), rows_per_file=20)
    assert files(tmp_path) == ["train/part-00000-of-00004.parquet", "train/part-00001-of-00004.parquet"]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    with pytest.raises(ValueError, match=r"has no test/"):
        parquet(str(tmp_path))
    source.broken = False
    assert convert(loaded, str(tmp_path), rows_per_file=20) == 3
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert parquet(str(tmp_path))["train"][0][:, 0, 0].tolist() == list(range(70))


def test_a_conversion_that_was_killed_leaves_nothing_that_counts(tmp_path):
    convert(cifar_like(), str(tmp_path), rows_per_file=30)
    whole = (tmp_path / "train" / "part-00001-of-00003.parquet").read_bytes()
    (tmp_path / "train" / "part-00001-of-00003.parquet").unlink()
    half = tmp_path / "train" / f"part-00001-of-00003.parquet.{'0a' * 16}.tmp"
    half.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="must hold all 3 parts .*; there are 2 files. Run the same suptickets data"):
        parquet(str(tmp_path))
    assert convert(cifar_like(), str(tmp_path), rows_per_file=30) == 1
    assert not half.exists()
    assert_same(cifar_like(), parquet(str(tmp_path)))


def test_an_interrupt_leaves_no_half_file(tmp_path):
    class Interrupts(Own):
        def __getitem__(self, index):
            if index == 40:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        convert({"train": Interrupts(50), "test": Own(3)}, str(tmp_path))
    assert files(tmp_path) == []


def test_a_truncated_part_is_written_again(tmp_path):
    convert(cifar_like(), str(tmp_path), rows_per_file=30)
    path = tmp_path / "train" / "part-00000-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert convert(cifar_like(), str(tmp_path), rows_per_file=30) == 1
    assert_same(cifar_like(), parquet(str(tmp_path)))


def other_pixels():
    return {**cifar_like(), "train": (made(70, seed=5)[0], made(70)[1])}


def other_labels():
    images, labels = made(70)
    return {**cifar_like(), "train": (images, torch.cat([labels[:-1], 9 - labels[-1:]]))}


@pytest.mark.parametrize(
    "other",
    [
        other_pixels,
        other_labels,
        lambda: {**cifar_like(), "train": made(69)},
        lambda: {**cifar_like(), "mean": (0.5, 0.5, 0.5)},
        lambda: {**cifar_like(), "num_classes": 10},
        lambda: {"train": Own(70), "test": Own(9)},
    ],
)
def test_another_data_set_in_the_target_is_refused_and_left_alone(tmp_path, other):
    convert(cifar_like(), str(tmp_path), rows_per_file=40)
    (tmp_path / "train" / "part-00000-of-00002.parquet").unlink()
    before = files(tmp_path)
    with pytest.raises(ValueError, match="must be of the same data set; it is of another. Choose another target"):
        convert(other(), str(tmp_path), rows_per_file=40)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["train/notes.txt", "train/notes.tmp", "val/x.parquet", "validation/x.parquet"])
def test_strange_files_in_the_target_are_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="the target must be empty or hold the same data set .*holds .*Choose another"):
        convert(cifar_like(), str(tmp_path))
    assert files(tmp_path) == [name]


def test_another_number_of_rows_per_file_is_refused(tmp_path):
    convert(cifar_like(), str(tmp_path), rows_per_file=40)
    with pytest.raises(ValueError, match="in the same number of files; .*holds part-00000-of-00002.parquet"):
        convert(cifar_like(), str(tmp_path), rows_per_file=10)


@pytest.mark.parametrize("number", [0, 20])
def test_a_damaged_image_is_found_with_its_name(tmp_path, number):
    source = write_folder(tmp_path / "images")
    loaded = image_folder(str(source), 8)
    path = source / "train" / loaded["train"].paths[number]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{path} must be an image that can be read; it is damaged"):
        convert(loaded, str(tmp_path / "out"))
    assert files(tmp_path / "out") == []


def test_an_image_that_vanished_is_named_and_not_the_target(tmp_path):
    source = write_folder(tmp_path / "images")
    loaded = image_folder(str(source), 8)
    path = source / "train" / loaded["train"].paths[7]
    path.unlink()
    with pytest.raises(ValueError, match=f"Cannot read {path}: "):
        convert(loaded, str(tmp_path / "out"))


class Growing(Own):
    def __getitem__(self, index):
        super().__getitem__(index)
        return torch.zeros(1 + (index >= self.limit)), 0


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (5, "a Dataset must give pairs of an input, a tensor of one shape"),
        (32, "must be tensors of one shape and type; the train"),
    ],
)
def test_examples_of_different_shapes_are_refused(tmp_path, limit, message):
    source = Growing(64)
    source.limit = limit
    with pytest.raises(ValueError, match=message):
        convert({"train": source, "test": Own(3)}, str(tmp_path))
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            (torch.zeros(4, 2, dtype=torch.bfloat16), torch.zeros(4).long()),
            "train set's examples must be tensors .*bfloat16",
        ),
        (
            (torch.zeros(4, 2, dtype=torch.bool), torch.zeros(4).long()),
            "train set's examples must be tensors .*torch.bool",
        ),
        ((torch.zeros(4), torch.zeros(4).long()), "train set's examples must be tensors .*at least one dimension"),
        ((torch.zeros(0, 2), torch.zeros(0).long()), "the train set must hold at least one example; it is empty"),
        ((torch.zeros(4, 2), torch.zeros(4)), "the train labels must be whole numbers"),
        (
            (torch.zeros(4, 2), torch.zeros(4, 1).long()),
            r"labels must be one class each, of shape \(n,\); got \(4, 1\)",
        ),
        (iter([]), "the train set must be a pair of tensors or a map-style Dataset"),
    ],
)
def test_what_parquet_cannot_hold_is_refused(tmp_path, train, message):
    with pytest.raises(ValueError, match=message):
        convert({"train": train, "test": made(2)}, str(tmp_path))


def test_rows_per_file_must_be_a_number_of_rows(tmp_path):
    with pytest.raises(ValueError, match="rows_per_file must be at least 1; got 0"):
        convert(cifar_like(), str(tmp_path), rows_per_file=0)


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Cannot write .*file/train/part-00000-of-00001\.parquet: "):
        convert(cifar_like(), str(tmp_path / "file"))
    with pytest.raises(ValueError, match="the target must be a path that pyarrow.fs can write; got 'nowhere://x'"):
        convert(cifar_like(), "nowhere://x")


def test_a_full_disk_leaves_the_parts_before(tmp_path, monkeypatch):
    class Full(pq.ParquetWriter):
        rows = 0

        def write_table(self, table, *arguments):
            Full.rows += len(table)
            if Full.rows > 50:
                raise OSError(28, "No space left on device")
            super().write_table(table, *arguments)

    monkeypatch.setattr(convert_module.pq, "ParquetWriter", Full)
    with pytest.raises(ValueError, match="Cannot write .*part-00001-of-00003.parquet: .*No space left.*are kept"):
        convert(cifar_like(), str(tmp_path), rows_per_file=30)
    assert files(tmp_path) == ["train/part-00000-of-00003.parquet"]


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A client, and the URI of a folder."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    client.create_bucket(Bucket="converted")
    yield client, f"s3://converted/sets/mine?endpoint_override={s3_server}&scheme=http&region=us-east-1"
    boto3.resource("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1").Bucket(
        "converted"
    ).objects.delete()


def test_s3_is_a_target_like_any_other(bucket, tmp_path):
    client, uri = bucket
    loaded = image_folder(str(write_folder(tmp_path / "images")), 8)
    assert convert(loaded, uri, rows_per_file=20) == 3
    names = [item["Key"] for item in client.list_objects_v2(Bucket="converted")["Contents"] if item["Size"]]
    assert sorted(names) == [
        "sets/mine/test/part-00000-of-00001.parquet",
        "sets/mine/train/part-00000-of-00002.parquet",
        "sets/mine/train/part-00001-of-00002.parquet",
    ]
    assert_equal_epochs(loaded, parquet(uri, 8))
    client.delete_object(Bucket="converted", Key=names[-1])
    assert convert(loaded, uri, rows_per_file=20) == 1
    with pytest.raises(ValueError, match="must be of the same data set; it is of another"):
        convert(image_folder(str(write_folder(tmp_path / "others", seed=1)), 8), uri, rows_per_file=20)


def test_a_bucket_that_is_not_there_is_named(bucket):
    _, uri = bucket
    with pytest.raises(ValueError, match="Cannot write|must be a path that pyarrow.fs can write"):
        convert(cifar_like(), uri.replace("s3://converted/", "s3://nobodys/"))
