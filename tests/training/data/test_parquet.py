"""Parquet written by hand, by pyarrow and pandas, on disk and on a local S3 server; and what may be wrong with it."""

import io
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import boto3
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from suptickets_ray.config import DataConfig
from suptickets_ray.training.data import load_data, parquet_files
from suptickets_ray.training.data.decoding import Decoder
from suptickets_ray.training.data.image_folder import IMAGENET_MEAN, IMAGENET_STD
from suptickets_ray.training.data.parquet import METADATA_KEY, parquet
from suptickets_ray.training.data.parquet_files import ParquetFiles
from suptickets_ray.training.data.splits import make_splits


def jpeg(seed, shape=(12, 15)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(shape).save(buffer, "JPEG")
    return buffer.getvalue()


def tensors(start, stop, shape=(1, 2, 3), dtype=np.uint8):
    """Images whose pixels all say their position."""
    numbers = np.arange(start, stop).astype(dtype).reshape(-1, *(1,) * len(shape))
    return np.ascontiguousarray(np.broadcast_to(numbers, (stop - start, *shape)))


def write(path, images, labels, rows_per_group=None, metadata=None):
    if isinstance(images, np.ndarray):
        kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(images.dtype), images.shape[1:])
        storage = pa.FixedSizeListArray.from_arrays(images.ravel(), int(np.prod(images.shape[1:])))
        images = pa.ExtensionArray.from_storage(kind, storage)
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)


@pytest.fixture
def numbered(tmp_path):
    """50 training tensors in three files of row groups of 1, 7 and 20 rows, 4 test tensors."""
    root = tmp_path / "numbered"
    for name, start, stop, group in (("a", 0, 5, 1), ("b", 5, 25, 7), ("c", 25, 50, 20)):
        write(root / "train" / f"{name}.parquet", tensors(start, stop), np.arange(start, stop) % 7, group)
    write(root / "test" / "only.parquet", tensors(100, 104), np.zeros(4, np.int32))
    return root


@pytest.fixture
def encoded(tmp_path):
    """20 training and 3 validation JPEG images, written by pandas."""
    root = tmp_path / "encoded"
    for split, seeds in (("train", range(20)), ("val", range(20, 23))):
        (root / split).mkdir(parents=True)
        frame = pd.DataFrame({"label": [seed % 4 for seed in seeds], "image": [jpeg(seed) for seed in seeds]})
        frame.to_parquet(root / split / "data.parquet")
    return root


def values(images):
    return images.flatten(1)[:, 0].tolist()


def test_tensors_of_several_files_and_row_groups_arrive_in_order(numbered):
    loaded = parquet(str(numbered))
    images, labels = loaded["train"]
    assert images.shape == (50, 1, 2, 3)
    assert images.dtype == torch.uint8
    assert values(images) == list(range(50))
    assert labels.tolist() == [number % 7 for number in range(50)]
    assert values(loaded["test"][0]) == [100, 101, 102, 103]
    assert loaded["num_classes"] == 7
    assert "mean" not in loaded


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int16])
def test_tensors_of_any_number_type_arrive_as_they_are(tmp_path, dtype):
    for split in ("train", "test"):
        write(tmp_path / split / "x.parquet", tensors(0, 9, (4,), dtype) / dtype(2), pa.array(range(9), pa.uint8()))
    images, labels = parquet(str(tmp_path))["train"]
    assert torch.equal(images, torch.from_numpy(tensors(0, 9, (4,), dtype) / dtype(2)))
    assert labels.tolist() == list(range(9))
    assert labels.dtype == torch.int64


def test_a_permuted_tensor_column_arrives_in_its_logical_order(tmp_path):
    kind = pa.fixed_shape_tensor(pa.uint8(), [2, 3], permutation=[1, 0])
    storage = pa.array([[1, 2, 3, 4, 5, 6]] * 2, pa.list_(pa.uint8(), 6))
    for split in ("train", "test"):
        write(tmp_path / split / "x.parquet", pa.ExtensionArray.from_storage(kind, storage), [0, 1])
    images, _ = parquet(str(tmp_path))["train"]
    assert images.is_contiguous()
    assert images[0].tolist() == [[1, 4], [2, 5], [3, 6]]


def test_encoded_images_of_pandas_are_streamed_like_a_folder(encoded):
    loaded = parquet(str(encoded), image_size=8)
    images = loaded["train"].read([0, 5, 19], None)
    for image, seed in zip(images, (0, 5, 19), strict=True):
        assert torch.equal(image, Decoder(8, 9)(jpeg(seed), "", None))
    assert loaded["test"].labels.tolist() == [0, 1, 2]
    assert (loaded["mean"], loaded["std"], loaded["num_classes"]) == (IMAGENET_MEAN, IMAGENET_STD, 4)


def test_encoded_images_in_memory_are_not_cut(encoded):
    loaded = parquet(str(encoded), image_size=8, in_memory=True)
    images, labels = loaded["train"]
    assert torch.equal(images, torch.stack([Decoder(8, 8)(jpeg(seed), "", None) for seed in range(20)]))
    assert labels.tolist() == [seed % 4 for seed in range(20)]


def test_large_binary_columns_are_encoded_images_too(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split / "x.parquet", pa.array([jpeg(1)], pa.large_binary()), [0])
    assert torch.equal(parquet(str(tmp_path), 8)["train"].read([0], None)[0], Decoder(8, 9)(jpeg(1), "", None))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 49), min_size=1, unique=True).map(sorted))
def test_rows_at_any_positions_are_those(shared_numbered, indices):
    source = parquet(str(shared_numbered), in_memory=False)["train"]
    assert values(source.read(indices, None)) == indices


@pytest.fixture(scope="module")
def shared_numbered(tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    write(root / "train" / "a.parquet", tensors(0, 30), np.zeros(30, np.int64), 4)
    write(root / "train" / "b.parquet", tensors(30, 30), np.zeros(0, np.int64))  # an empty file between
    write(root / "train" / "c.parquet", tensors(30, 50), np.zeros(20, np.int64), 9)
    write(root / "test" / "x.parquet", tensors(0, 2), np.zeros(2, np.int64))
    return root


def test_streamed_tensors_can_be_read_by_index_in_any_order(numbered):
    loaded = parquet(str(numbered), in_memory=False)
    splits = make_splits(loaded, DataConfig(name="parquet", batch_size=2, validation_share=0.2))
    order = torch.tensor([30, 2, 39, 2, 17])
    inputs, labels = splits.train.batch(order)
    everything = torch.cat([part for part, _ in splits.train.batches(7)])
    assert torch.equal(inputs, everything[order])
    assert labels.tolist() == [number % 7 for number in (inputs.flatten(1)[:, 0] * 255).round().int().tolist()]


def test_only_the_row_groups_that_hold_the_rows_are_read(numbered, monkeypatch):
    files = ParquetFiles(str(numbered), "train")
    reads = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, columns: reads.append(groups) or original(self, groups, columns),
    )
    files.rows("image", [3, 6, 20, 24])
    assert reads == [[3], [0, 2]]
    files.rows("image", [25, 26])
    files.rows("image", [27, 44])  # the same group again
    assert reads[2:] == [[0]]


def test_no_more_files_are_held_open_than_allowed(numbered, monkeypatch):
    monkeypatch.setattr(parquet_files, "_MAX_OPEN_FILES", 2)
    files = ParquetFiles(str(numbered), "train")
    for index in (0, 10, 30, 1, 11, 31):
        assert files.rows("label", [index]).to_pylist() == [index % 7]
        assert len(files._open_files) <= 2


def test_it_can_be_pickled_and_is_opened_anew(numbered):
    source = parquet(str(numbered), in_memory=False)["train"]
    source.read([1], None)
    copy = pickle.loads(pickle.dumps(source))
    assert values(copy.read([0, 30], None)) == [0, 30]
    assert copy.labels.tolist() == source.labels.tolist()


def test_threads_may_read_at_once(numbered):
    source = pickle.loads(pickle.dumps(parquet(str(numbered), in_memory=False)["train"]))
    jobs = [sorted({number % 50, (7 * number) % 50, (11 * number) % 50}) for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        assert [values(images) for images in pool.map(lambda job: source.read(job, None), jobs)] == jobs


def test_what_convert_left_in_the_files_counts(numbered):
    kept = {"num_classes": 12, "mean": [0.25], "std": [0.5], "augmentation": {"crop_padding": 1, "flip": True}}
    for split in ("train", "test"):
        shutil.rmtree(numbered / split)
        write(numbered / split / "x.parquet", tensors(0, 20), np.arange(20) % 5, None, {METADATA_KEY: json.dumps(kept)})
    splits = load_data(DataConfig(name="parquet", root=str(numbered), batch_size=2))
    assert splits.num_classes == 12
    assert (splits.train.augmentation.crop_padding, splits.train.augmentation.flip) == (1, True)
    pixels = torch.cat([inputs for inputs, _ in splits.test.batches(6)])[:, 0, 0, 0]
    assert pixels.tolist() == pytest.approx([(number / 255 - 0.25) / 0.5 for number in range(20)], abs=1e-6)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "val"), {"train": "train", "test": "val"}),
        (("train", "test"), {"train": "train", "test": "test"}),
        (("train", "val", "test"), {"train": "train", "validation": "val", "test": "test"}),
        (("train", "validation", "val"), {"train": "train", "validation": "validation", "test": "val"}),
        (("train", "validation", "test"), {"train": "train", "validation": "validation", "test": "test"}),
    ],
)
def test_val_is_the_test_set_unless_there_is_one(tmp_path, folders, expected):
    for number, name in enumerate(folders):
        write(tmp_path / name / "x.parquet", tensors(number, number + 1), [0])
    loaded = parquet(str(tmp_path))
    assert {split: folders[values(loaded[split][0])[0]] for split in expected} == expected
    assert ("validation" in loaded) == ("validation" in expected)


def test_files_below_and_files_that_are_no_data(numbered):
    before = values(parquet(str(numbered))["train"][0])
    for name in ("_metadata.parquet", ".a.parquet", "_temporary/0/x.parquet", "README.md", "a.parquet.tmp"):
        path = numbered / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no data")
    write(numbered / "train" / "year=2020" / "x.parquet", tensors(50, 52), np.zeros(2, np.int64))
    assert values(parquet(str(numbered))["train"][0]) == [*before, 50, 51]


def test_a_path_with_blanks_and_signs(numbered, tmp_path):
    shutil.move(numbered, tmp_path / "a b%20c#d é")
    assert len(parquet(str(tmp_path / "a b%20c#d é"))["train"][1]) == 50


def break_file(root, damage):
    path = root / "train" / "b.parquet"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[:-30],
            "empty": b"",
            "text": b"PAR1 this is none PAR1",
            "footer": whole[:-8] + b"\xff\xff\xff\x00PAR1",
        }[damage]
    )
    return path


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "footer"])
def test_a_damaged_file_is_named(numbered, damage):
    path = break_file(numbered, damage)
    with pytest.raises(ValueError, match=f"{path} must be a whole Parquet file; it is damaged"):
        parquet(str(numbered))


def test_a_file_cut_off_after_it_was_opened_is_named(numbered):
    source = parquet(str(numbered), in_memory=False)["train"]
    path = break_file(numbered, "truncated")
    with pytest.raises(ValueError, match=f"{path} must be a whole Parquet file; it is damaged"):
        source.read([6], None)


@pytest.mark.parametrize("in_memory", [True, False])
def test_flipped_bytes_are_found_by_check_sums(tmp_path, in_memory):
    """One byte at each of 60 places."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        table = pa.table({"image": pa.array([jpeg(seed) for seed in range(5)]), "label": range(5)})
        pq.write_table(table, tmp_path / split / "x.parquet", write_page_checksum=True, write_statistics=False)
    path = tmp_path / "train" / "x.parquet"
    whole = bytearray(path.read_bytes())
    footer = int.from_bytes(whole[-8:-4], "little") + 8

    def read():
        source = parquet(str(tmp_path), 8, in_memory=in_memory)["train"]
        return source if in_memory else (source.read(range(5), None), source.labels)

    expected, found = read(), 0
    for place in np.linspace(4, len(whole) - footer - 1, 60).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            images, labels = read()
            assert torch.equal(images, expected[0])  # a page's header has no check sum of its own
            assert torch.equal(labels, expected[1])
        except ValueError as error:
            assert str(path) in str(error) and "it is damaged" in str(error)
            found += 1
    assert found > 50


def test_flipped_bits_of_the_footer_are_named_or_harmless_but_rows_are_never_lost(tmp_path):
    """100 bits, of a file of tensors in several row groups."""
    for split in ("train", "test"):
        write(tmp_path / split / "x.parquet", tensors(0, 20), np.arange(20), 6)
    path, rng = tmp_path / "train" / "x.parquet", np.random.default_rng(0)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    for attempt in range(100):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole) - footer, len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            loaded = parquet(str(tmp_path), in_memory=bool(attempt % 2))["train"]
            images = loaded[0] if attempt % 2 else loaded.read(range(20), None)
            assert len(images) == 20
        except ValueError as error:
            assert str(tmp_path / "train") in str(error)


def column(name, values):
    return lambda root: pq.write_table(
        pa.table({"image": pa.array([jpeg(0)] * 2), "label": [0, 1]} | {name: values}), root / "train" / "data.parquet"
    )


def without(name):
    return lambda root: pq.write_table(
        pa.table({"image": pa.array([jpeg(0)] * 2), "label": [0, 1]}).drop_columns([name]),
        root / "train" / "data.parquet",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("label"), r"data.parquet must have the columns image and label; 'label' is missing among \['image'\]"),
        (without("image"), r"data.parquet must have the columns image and label; 'image' is missing among \['label'\]"),
        (column("label", ["cat", "dog"]), "train must have a whole number as each label; got string"),
        (column("label", [0.0, 1.0]), "train must have a whole number as each label; got double"),
        (column("label", [True, False]), "train must have a whole number as each label; got bool"),
        (column("label", [1, None]), "train must have a label for each image; 1 are null"),
        (column("label", [1, -1]), "train must have labels of at least 0; got -1"),
        (
            column("image", ["a.jpg", "b.jpg"]),
            "train must have encoded images as bytes, or tensors .*; it is of type string",
        ),
        (column("image", [[1, 2], [3, 4]]), "train must have encoded images as bytes, or tensors .*of type list"),
        (
            column("image", [{"bytes": b"", "path": ""}] * 2),
            "train must have encoded images as bytes, .*of type struct",
        ),
        (lambda root: shutil.rmtree(root / "val"), r"has no test/\. suptickets data convert makes such a folder"),
        (lambda root: shutil.rmtree(root / "train"), r"has no train/\. suptickets data convert makes such a folder"),
        (lambda root: (root / "train" / "data.parquet").unlink(), "train must hold .parquet files; there is none"),
        (
            lambda root: pq.write_table(
                pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
                root / "train" / "data.parquet",
            ),
            "train must hold at least one row; its files are empty",
        ),
        (
            lambda root: write(root / "train" / "more.parquet", tensors(0, 2), [0, 1]),
            "more.parquet must have columns of the same types as .*data.parquet; 'image' is of type extension",
        ),
        (
            lambda root: write(root / "val" / "data.parquet", tensors(0, 2), [0, 1]),
            "val must have images of the same type as train; it has extension.* and not binary",
        ),
        (
            lambda root: write(root / "train" / "data.parquet", [jpeg(0)], [0], None, {METADATA_KEY: b"{"}),
            "data.parquet must have JSON under b'suptickets_ray.data'; it is damaged",
        ),
    ],
)
def test_files_of_another_form_are_refused(encoded, change, message):
    change(encoded)
    with pytest.raises(ValueError, match=message):
        parquet(str(encoded), 8)


def test_a_null_image_is_named(encoded):
    column("image", pa.array([jpeg(0), None]))(encoded)
    source = parquet(str(encoded), 8)["train"]
    with pytest.raises(ValueError, match="image 1 of .*train must be the bytes of an image; it is null"):
        source.read([0, 1], None)


def test_tensors_of_bits_are_refused(tmp_path):
    storage = pa.array([[True, False]] * 2, pa.list_(pa.bool_(), 2))
    for split in ("train", "test"):
        column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.bool_(), [2]), storage)
        write(tmp_path / split / "x.parquet", column, [0, 1])
    with pytest.raises(ValueError, match="train must have .*tensors of one shape and a number type, .*value_type=bool"):
        parquet(str(tmp_path))


@pytest.mark.parametrize("rows", [[[1, 2, 3, 4], None], [[1, 2, 3, 4], [1, None, 3, 4]]])
def test_null_tensors_and_null_pixels_are_refused(tmp_path, rows):
    kind = pa.fixed_shape_tensor(pa.uint8(), [2, 2])
    for split in ("train", "test"):
        storage = pa.array(rows, pa.list_(pa.uint8(), 4))
        write(tmp_path / split / "x.parquet", pa.ExtensionArray.from_storage(kind, storage), [0, 1])
    with pytest.raises(ValueError, match="train must have a whole tensor as each image; there are nulls"):
        parquet(str(tmp_path))


def test_a_damaged_image_says_where_it_lies(encoded):
    column("image", pa.array([jpeg(0), jpeg(0)[:100]]))(encoded)
    source = parquet(str(encoded), 8)["train"]
    with pytest.raises(
        ValueError, match=r"image 1 of .*encoded/train must be an image that can be read; it is damaged"
    ):
        source.read([0, 1], None)


@pytest.mark.parametrize("names", [["part-00000-of-00003"], ["part-00000-of-00002", "part-00001-of-00002", "other"]])
def test_missing_parts_and_strangers_among_them_are_refused(tmp_path, names):
    for name in names:
        write(tmp_path / "train" / f"{name}.parquet", tensors(0, 2), [0, 1])
    write(tmp_path / "test" / "part-00000-of-00001.parquet", tensors(0, 2), [0, 1])
    with pytest.raises(ValueError, match=f"must hold all . parts of one data set .*; there are {len(names)} files"):
        parquet(str(tmp_path))


@pytest.mark.parametrize("uri", ["nowhere://x/y", "s3:///", "hdfs://x/y"])
def test_a_path_that_pyarrow_cannot_read_is_refused(uri):
    with pytest.raises(ValueError, match="data.root must be a path that pyarrow.fs can read; got "):
        parquet(uri)


@pytest.mark.parametrize("options", [{"image_size": 8}, {"resize_size": 8}, {"block_size": 8}])
def test_settings_that_do_nothing_to_tensors_are_refused(numbered, options):
    with pytest.raises(ValueError, match=f"data.options.{'block' if 'block_size' in options else 'image'}_size has no"):
        parquet(str(numbered), **options)


def test_a_label_beyond_the_classes_of_the_set_is_refused(encoded):
    write(encoded / "train" / "data.parquet", [jpeg(0)] * 4, [0, 1, 2, 5], None, {METADATA_KEY: b'{"num_classes": 3}'})
    config = DataConfig(name="parquet", root=str(encoded), batch_size=1, options={"image_size": 8})
    with pytest.raises(ValueError, match="the train labels must be classes 0 to 2; got values from 0 to 5"):
        load_data(config)


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A client, and a function that makes the URI of a path."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    client.create_bucket(Bucket="data")
    yield client, lambda path: f"s3://data/{path}?endpoint_override={s3_server}&scheme=http&region=us-east-1"
    boto3.resource("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1").Bucket("data").objects.delete()


def upload(client, folder, prefix):
    for path in folder.rglob("*.parquet"):
        client.put_object(Bucket="data", Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())


def test_on_s3_it_reads_as_on_disk(bucket, numbered, encoded):
    client, uri = bucket
    upload(client, numbered, "sets/numbered")
    upload(client, encoded, "encoded")
    images, labels = parquet(uri("sets/numbered"))["train"]
    assert values(images) == list(range(50))
    assert labels.tolist() == [number % 7 for number in range(50)]
    there = pickle.loads(pickle.dumps(parquet(uri("encoded"), 8)["train"]))
    assert torch.equal(there.read([3, 4, 11], 1), parquet(str(encoded), 8)["train"].read([3, 4, 11], 1))


def test_on_s3_the_errors_name_the_object(bucket, numbered):
    client, uri = bucket
    with pytest.raises(ValueError, match="has no train/"):
        parquet(uri("numbered"))
    break_file(numbered, "truncated")
    upload(client, numbered, "numbered")
    with pytest.raises(ValueError, match=r"data/numbered/train/b\.parquet must be a whole Parquet file; it is damaged"):
        parquet(uri("numbered"))
