"""CIFAR's pickled batches and MNIST's IDX files in their true on-disk form."""

import contextlib
import io
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suptickets_ray.config import DataConfig
from suptickets_ray.training.data import load_data
from suptickets_ray.training.data.vision import cifar10, cifar100, fashion_mnist, mnist
from suptickets_ray.training.data.vision_files import read_cifar


def published_pickle(content):
    """A pickle as Python 2 and the NumPy of 2009 wrote it: protocol 2, byte strings, the old name of NumPy's core."""
    buffer = io.BytesIO()
    pickler = pickle._Pickler(buffer, protocol=2)

    def save(value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        pickler.write(b"T" + struct.pack("<i", len(raw)) + raw)  # a string of Python 2
        pickler.memoize(value)

    pickler.dispatch = {**pickler.dispatch, str: lambda _, value: save(value), bytes: lambda _, value: save(value)}
    pickler.dump(content)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(rng, count, num_classes, **extra):
    data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, "labels": [int(label) for label in rng.integers(0, num_classes, count)], **extra}


def write_cifar10(root, count=100):
    """6 batches as in the published archive: 5 * count training images, count test images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng, made = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        made[name] = batch(rng, count, 10, batch_label=f"part {name}", filenames=[f"{i}.png" for i in range(count)])
        (folder / name).write_bytes(published_pickle(made[name]))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(published_pickle({"label_names": names, "num_vis": 3072}))
    return made


def write_cifar100(root, count=60):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng, made = np.random.default_rng(1), {}
    for name in ("train", "test"):
        made[name] = batch(rng, count, 100)
        fine = made[name].pop("labels")
        made[name] |= {"fine_labels": fine, "coarse_labels": [label // 5 for label in fine]}
        (folder / name).write_bytes(published_pickle(made[name]))
    names = {"fine_label_names": [f"fine{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    (folder / "meta").write_bytes(published_pickle(names))
    return made


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root, name, sizes=(40, 12)):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    rng, made = np.random.default_rng(2), {}
    for part, count in zip(("train", "t10k"), sizes, strict=True):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
        made[part] = (images, labels)
    return made


def test_cifar10_arrives_pixel_by_pixel(tmp_path):
    made = write_cifar10(tmp_path)
    loaded = cifar10(str(tmp_path))
    images = np.concatenate([made[f"data_batch_{number}"]["data"] for number in range(1, 6)]).reshape(500, 3, 32, 32)
    labels = [label for number in range(1, 6) for label in made[f"data_batch_{number}"]["labels"]]
    assert loaded["train"][0].dtype == torch.uint8
    assert torch.equal(loaded["train"][0], torch.from_numpy(images))
    assert loaded["train"][1].tolist() == labels
    assert torch.equal(loaded["test"][0].flatten(1), torch.from_numpy(made["test_batch"]["data"]))
    assert loaded["test"][1].tolist() == made["test_batch"]["labels"]
    assert loaded["num_classes"] == 10


def test_cifar10_is_augmented_as_in_the_papers(tmp_path):
    write_cifar10(tmp_path, 20)
    splits = load_data(DataConfig(name="cifar10", root=str(tmp_path), batch_size=10))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (90, 10, 20)
    augmentation = splits.train.augmentation
    assert (augmentation.crop_padding, augmentation.crop_padding_mode, augmentation.flip) == (4, "reflect", True)
    assert not splits.validation.augmentation.does_something
    assert splits.sample_shape == (3, 32, 32)


def test_cifar100_takes_the_fine_labels(tmp_path):
    made = write_cifar100(tmp_path)
    loaded = cifar100(str(tmp_path))
    for split in ("train", "test"):
        assert torch.equal(loaded[split][0].flatten(1), torch.from_numpy(made[split]["data"]))
        assert loaded[split][1].tolist() == made[split]["fine_labels"]
    assert loaded["num_classes"] == 100
    assert loaded["augmentation"] == {"crop_padding": 4, "crop_padding_mode": "zero", "flip": True}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_batches_pickled_by_todays_python_are_read_too(tmp_path, protocol):
    made = write_cifar10(tmp_path, 4)
    for name, content in made.items():
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content, protocol=protocol))
    assert cifar10(str(tmp_path))["test"][1].tolist() == made["test_batch"]["labels"]


@pytest.mark.parametrize(("load", "name"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_idx_files_arrive_pixel_by_pixel(tmp_path, load, name):
    made = write_mnist(tmp_path, name)
    loaded = load(str(tmp_path))
    for split, part in (("train", "train"), ("test", "t10k")):
        assert loaded[split][0].shape[1:] == (1, 28, 28)
        assert torch.equal(loaded[split][0][:, 0], torch.from_numpy(made[part][0]))
        assert torch.equal(loaded[split][1], torch.from_numpy(made[part][1]).long())
    assert loaded["num_classes"] == 10


def test_a_copy_that_torchvision_made_long_ago_is_not_read_in_place_of_the_files(tmp_path):
    made = write_mnist(tmp_path, "MNIST")
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3)), tmp_path / "MNIST" / "processed" / name)
    assert torch.equal(mnist(str(tmp_path))["train"][0][:, 0], torch.from_numpy(made["train"][0]))


@pytest.mark.parametrize(
    ("load", "missing"),
    [
        (cifar10, "cifar-10-batches-py/data_batch_1"),
        (cifar100, "cifar-100-python/train"),
        (mnist, "MNIST/raw/train-images-idx3-ubyte"),
        (fashion_mnist, "FashionMNIST/raw/train-images-idx3-ubyte"),
    ],
)
def test_without_files_the_error_says_what_to_put_where(tmp_path, load, missing):
    with pytest.raises(
        ValueError, match=r"data\.root must hold .*; there is no .*\. Put .* there.*data\.download=true"
    ):
        load(str(tmp_path))
    with pytest.raises(ValueError, match=str(tmp_path / missing)):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["test_batch", "batches.meta", "data_batch_3"])
def test_one_missing_batch_is_named(tmp_path, name):
    write_cifar10(tmp_path, 4)
    (tmp_path / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(ValueError, match=f"there is no .*{name}. Put the unpacked folder cifar-10-batches-py there"):
        cifar10(str(tmp_path))


class Malicious:
    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_something_does_not(tmp_path, name, protocol):
    made = write_cifar10(tmp_path, 4)
    witness, harmful = tmp_path / "witness", Malicious()
    harmful.witness = witness
    content = {**made.get(name, {"label_names": list("abcdefghij")}), "extra": harmful}
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=f"{name} must be a file of CIFAR-10; .*more than arrays: it names .*system"):
        cifar10(str(tmp_path))
    assert not witness.exists()
    pickle.loads((tmp_path / "cifar-10-batches-py" / name).read_bytes())
    assert witness.exists()  # it would have run


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.update(data=np.zeros((4, 3071), np.uint8)), r"uint8 of shape \(n, 3072\)"),
        (lambda content: content.update(data=np.zeros((4, 3072), np.float32)), r"uint8 of shape \(n, 3072\)"),
        (lambda content: content.update(data=[[0] * 3072] * 4), r"uint8 of shape \(n, 3072\)"),
        (lambda content: content.update(data=np.zeros((0, 3072), np.uint8), labels=[]), "a label each"),
        (lambda content: content.update(labels=[1, 2, 3]), "its 4 images must have a label each"),
        (lambda content: content.update(labels=[1, 2, 3, 10]), "its labels must be whole numbers from 0 to 9"),
        (lambda content: content.update(labels=[1, 2, 3, -1]), "its labels must be whole numbers from 0 to 9"),
        (lambda content: content.update(labels=["a", "b", "c", "d"]), "its labels must be whole numbers"),
        (lambda content: content.pop("data"), "there is no 'data'"),
        (lambda content: content.pop("labels"), "there is no 'fine_labels'"),
    ],
)
def test_a_batch_of_another_form_is_refused(tmp_path, change, reason):
    content = write_cifar10(tmp_path, 4)["data_batch_4"]
    change(content)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").write_bytes(published_pickle(content))
    with pytest.raises(ValueError, match=rf"data_batch_4 must be a file of CIFAR-10; .*{reason}.*Remove it, and fetch"):
        cifar10(str(tmp_path))


class Pointer:
    def __reduce__(self):
        return np.ndarray, ((1,), "O", b"A" * 8)


class Follow:
    def __reduce__(self):
        return np.ndarray, (Pointer(),)


def repeating(text, times):
    """A pickle whose list encodes one of its strings again and again."""
    encode = (
        b"c_codecs\nencode\nq\x00" + b"(X" + struct.pack("<I", len(text)) + text + b"X\x06\x00\x00\x00latin1tq\x01R0"
    )
    return b"\x80\x02" + encode + b"(" + b"h\x00h\x01R" * times + b"l."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "x": Follow()}, protocol=2), "it calls numpy.ndarray"),
        (b"\x80\x02}r" + struct.pack("<I", 2**31) + b".", "there is no 'data'"),  # C would resize its memo to 16 GB
        (repeating(b"x" * 2**20, 50), "it expands to more than twice its size"),
        (b"\x80\x02\x8a\x04" + b"\xff" * 3, "it ends too early"),
    ],
    ids=["object array", "memo", "repeated", "long integer"],
)
def test_a_crafted_batch_is_refused_without_following_or_allocating(tmp_path, content, reason):
    write_cifar10(tmp_path, 4)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match=f"data_batch_1 must be a file of CIFAR-10; .*{reason}"):
        cifar10(str(tmp_path))


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1])
def test_a_truncated_batch_is_named(tmp_path, kept):
    write_cifar10(tmp_path, 4)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="test_batch must be a file of CIFAR-10; it is damaged"):
        cifar10(str(tmp_path))


def test_names_of_too_few_classes_are_refused(tmp_path):
    write_cifar10(tmp_path, 4)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat"]}))
    with pytest.raises(ValueError, match="batches.meta must be a file of CIFAR-10; .*it must name 10 classes"):
        cifar10(str(tmp_path))


@pytest.mark.parametrize("part", ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"])
@pytest.mark.parametrize("damage", ["missing", "empty", "header", "truncated", "longer", "zipped"])
def test_a_damaged_idx_file_is_named(tmp_path, part, damage):
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / f"{part}-ubyte"
    whole = path.read_bytes()
    changed = {
        "empty": b"",
        "header": whole[:6],
        "truncated": whole[:-1],
        "longer": whole + b"\0",
        "zipped": b"\x1f\x8b" + whole[2:],
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    with pytest.raises(ValueError, match=f"{path.name}.*data.download=true"):
        mnist(str(tmp_path))


@pytest.mark.parametrize(
    ("part", "array", "reason"),
    [
        (
            "train-images-idx3",
            np.zeros((40, 32, 32), np.uint8),
            "images of 28 x 28 pixels for MNIST; it holds 40 of 32",
        ),
        ("train-images-idx3", np.zeros((0, 28, 28), np.uint8), "images of 28 x 28 pixels for MNIST; it holds 0 of 28"),
        ("train-images-idx3", np.zeros((40, 784), np.uint8), "bytes in 3 dimensions; it is damaged"),
        ("t10k-labels-idx1", np.zeros(11, np.uint8), "for each of the 12 images of MNIST; it holds 11"),
        ("t10k-labels-idx1", np.full(12, 10, np.uint8), "a label below 10 for each .*; it holds 12, up to 10"),
    ],
)
def test_an_idx_file_that_does_not_fit_is_named(tmp_path, part, array, reason):
    write_mnist(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST" / "raw" / f"{part}-ubyte", array)
    with pytest.raises(ValueError, match=f"{part}-ubyte must .*{reason}"):
        mnist(str(tmp_path))


def test_a_header_that_claims_more_than_memory_holds_is_refused(tmp_path):
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(784))
    with pytest.raises(ValueError, match="must have 79228162458924105385300197391 bytes"):
        mnist(str(tmp_path))


@pytest.mark.parametrize(("load", "reader"), [(cifar10, "CIFAR10"), (mnist, "MNIST")])
def test_a_download_that_fails_says_what_it_needed(tmp_path, monkeypatch, load, reader):
    from torchvision import datasets

    def fails(self):
        raise OSError("no route to host")

    monkeypatch.setattr(getattr(datasets, reader), "download", fails)
    with pytest.raises(ValueError, match="Cannot download .*no route to host"):
        load(str(tmp_path), download=True)


@pytest.mark.parametrize(
    ("load", "reader", "write"),
    [(cifar10, "CIFAR10", write_cifar10), (mnist, "MNIST", lambda root: write_mnist(root, "MNIST"))],
)
def test_files_are_fetched_only_when_asked_and_checked_afterwards(tmp_path, monkeypatch, load, reader, write):
    from torchvision import datasets

    calls = []

    def download(self):
        calls.append(self.root)
        write(tmp_path)

    monkeypatch.setattr(getattr(datasets, reader), "download", download)
    monkeypatch.setattr(getattr(datasets, reader), "_check_integrity", lambda self: True, raising=False)
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    with pytest.raises(ValueError, match="there is no"):
        load(str(tmp_path))
    assert not calls
    assert len(load(str(tmp_path), download=True)["test"][1]) > 0
    assert calls == [str(tmp_path)]
    load(str(tmp_path), download=True)  # nothing is missing now, and one's own files are not replaced
    assert len(calls) == 1


WHOLE = published_pickle({"data": np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072), "labels": [3, 4]})
OPCODES = [bytes([code]) for code in range(256) if any(op.code == chr(code) for op in pickletools.opcodes)]


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_crafted_pickles_are_a_batch_or_a_value_error(data, tmp_path_factory):
    """Opcodes at random places of a whole batch, and programs of opcodes alone."""
    if data.draw(st.booleans()):
        content = bytearray(WHOLE)
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, 200) | st.integers(len(content) - 60, len(content) - 1))
            content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from(OPCODES))
    else:
        parts = data.draw(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=5), max_size=30))
        content = bytearray(b"\x80\x02" + b"".join(parts) + b".")
    path, meta = (tmp_path_factory.getbasetemp() / name for name in ("fuzzed_batch", "fuzzed_meta"))
    path.write_bytes(bytes(content))
    meta.write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with contextlib.suppress(ValueError):
        (images, labels), *_ = read_cifar([path], meta, "label_names", "CIFAR-10", 10)
        assert images.shape == (len(labels), 3072)
