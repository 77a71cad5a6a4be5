"""Crafted files are read correctly or refused by name, within bounds of time and memory."""

import io
import struct
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from suptickets_ray.training.data.decoding import Decoder
from suptickets_ray.training.data.parquet import parquet
from suptickets_ray.training.data.vision_files import check_idx

SECONDS = 5.0
DECODER = Decoder(8, 9)


def encoded(kind, size=(12, 15)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def pieces(content):
    """Edits of a file: at a position, bytes are replaced, inserted or removed; whole 32-bit numbers among them."""
    number = st.sampled_from([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1])
    words = st.one_of(number.map(struct.Struct("<I").pack), number.map(struct.Struct(">I").pack), st.binary(max_size=8))
    return st.lists(st.tuples(st.integers(0, len(content)), st.integers(0, 8), words), min_size=1, max_size=6)


def edited(content, edits):
    for position, removed, inserted in edits:
        content = content[:position] + inserted + content[position + removed :]
    return content


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage that it mends
def test_crafted_images_are_pixels_or_a_value_error(kind, data):
    content = encoded(kind)
    content = edited(content, data.draw(pieces(content)))
    began = time.monotonic()
    try:
        assert DECODER(content, "a.img", None).shape == (3, 8, 8)
    except ValueError as error:
        assert str(error).startswith("a.img must be an image that can be read")
    assert time.monotonic() - began < SECONDS


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow refuses twice as many
def test_a_small_file_of_very_many_pixels_is_refused():
    buffer = io.BytesIO()
    Image.new("1", (10_000, 9_500)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(ValueError, match="a.png .*it has 10000 x 9500 pixels, more than 89,000,000"):
        DECODER(buffer.getvalue(), "a.png", None)


def test_a_format_that_needs_an_interpreter_is_refused():
    buffer = io.BytesIO()
    Image.new("RGB", (10, 10)).save(buffer, "EPS")
    with pytest.raises(ValueError, match="a.jpg .*its format is unknown"):  # not that the interpreter is missing
        DECODER(buffer.getvalue(), "a.jpg", None)


def write_set(root, label=None, images=None):
    for split in ("train", "test"):
        (root / split).mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": images or [encoded("JPEG")] * 6, "label": label or [0, 1, 2, 0, 1, 2]})
        pq.write_table(table, root / split / "a.parquet")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_crafted_parquet_files_are_rows_or_a_value_error(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("parquet")
    write_set(root)
    path = root / "train" / "a.parquet"
    whole = path.read_bytes()
    path.write_bytes(edited(whole, data.draw(pieces(whole))))
    began = time.monotonic()
    try:
        source = parquet(str(root), 8, in_memory=False)["train"]
        source.read(list(range(min(len(source), 6))), None)
    except ValueError as error:
        assert str(root) in str(error)
    assert time.monotonic() - began < SECONDS


def test_a_small_parquet_file_of_very_many_rows_is_refused(tmp_path):
    write_set(tmp_path)
    count = 2_000_000
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([encoded("JPEG")]))
    table = pa.table({"image": same, "label": pa.array(np.zeros(count, np.int64))})
    path = tmp_path / "train" / "a.parquet"
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 200_000
    with pytest.raises(ValueError, match="it declares 2,000,000 rows in"):
        parquet(str(tmp_path), 8)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_crafted_idx_files_are_checked_or_a_value_error(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("idx")
    images = struct.pack(">4I", 0x0803, 3, 28, 28) + bytes(3 * 784)
    labels = struct.pack(">2I", 0x0801, 3) + bytes((0, 1, 2))
    whole = [images, labels]
    which = data.draw(st.integers(0, 1))
    whole[which] = edited(whole[which], data.draw(pieces(whole[which])))
    paths = [root / "images", root / "labels"]
    for path, content in zip(paths, whole, strict=True):
        path.write_bytes(content)
    try:
        check_idx(*paths, "MNIST", 10)
    except ValueError as error:
        assert str(root) in str(error)
    else:
        assert [path.stat().st_size for path in paths] == [16 + 3 * 784, 8 + 3]
