"""Folders of image files beside torchvision's own reading of them."""

import io
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator
from torchvision.transforms import InterpolationMode, v2

from suptickets_ray.config import DataConfig
from suptickets_ray.training.data import load_data
from suptickets_ray.training.data.decoding import Decoder, crop_seed, make_decoder, random_box
from suptickets_ray.training.data.image_folder import FolderSource, FolderWalk, image_folder, imagenet

# The tree of these tests has no cat in val, and some tests add a file beside the images.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.* classes have no image in .*(val|test)", "ignore:1 files under .* are not images"
)
SIZE = 16


def picture(rng, width, height, mode="RGB"):
    """A smooth random picture."""
    bands = {"L": 1, "RGB": 3, "RGBA": 4}.get(mode, 3)
    coarse = rng.integers(0, 256, (4, 5, bands), dtype=np.uint8).squeeze()
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return image.quantize(16) if mode == "P" else image.convert(mode)


VARIED = [
    ("ant", "a.jpg", (30, 20), "RGB"),
    ("ant", "deep/down/b.JPEG", (17, 41), "L"),
    ("ant", "c.png", (16, 16), "RGBA"),
    ("bee", "d.png", (25, 25), "P"),
    ("bee", "e.bmp", (9, 12), "RGB"),
    ("cat", "f.webp", (40, 18), "RGB"),
    ("cat", "g.jpg", (21, 33), "CMYK"),
    ("cat", "h.png", (20, 22), "1"),
]


def write(folder, listed=VARIED, seed=0):
    rng = np.random.default_rng(seed)
    for name, file, (width, height), mode in listed:
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng, width, height, mode).save(path)


@pytest.fixture
def tree(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "val", VARIED[:5], seed=1)
    return tmp_path


def load(root, **options):
    return image_folder(str(root), SIZE, **options)


def by_torchvision(path, size, resize):
    image = Image.open(path)
    image = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    pipeline = v2.Compose([v2.Resize(resize, InterpolationMode.BILINEAR), v2.CenterCrop(size), v2.PILToTensor()])
    return pipeline(image)


@pytest.fixture(autouse=True)
def in_the_order_of_names(request, monkeypatch):
    """So that an image's position says which it is."""
    if "mixed" not in request.node.name:
        monkeypatch.setattr(sys.modules[FolderSource.__module__], "shuffled", lambda listed: listed)


def test_training_images_are_mixed_once_and_for_all_and_others_are_not(tree):
    loaded, again = load(tree), load(tree)
    assert loaded["train"].paths == again["train"].paths != sorted(loaded["train"].paths)
    assert len(set(loaded["train"].labels.tolist()[:4])) > 1
    assert loaded["test"].labels.tolist() == [0, 0, 0, 1, 1]
    # In memory, too: Parquet made of either gives the same bits.
    assert load(tree, in_memory=True)["train"][1].tolist() == loaded["train"].labels.tolist()


def test_classes_and_files_are_in_the_order_of_their_names(tree):
    loaded = load(tree)
    assert loaded["num_classes"] == 3
    assert loaded["train"].paths == [
        *("ant/a.jpg", "ant/c.png", "ant/deep/down/b.JPEG", "bee/d.png"),
        *("bee/e.bmp", "cat/f.webp", "cat/g.jpg", "cat/h.png"),
    ]
    assert loaded["train"].labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert loaded["test"].labels.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("options", [{}, {"resize_size": 16}, {"resize_size": 40}])
def test_evaluation_equals_torchvisions_resize_and_centre_crop(tree, options):
    source = load(tree, **options)["train"]
    images = source.read(range(8), None)
    assert images.shape == (8, 3, SIZE, SIZE)
    assert images.dtype == torch.uint8
    for image, path in zip(images, source.paths, strict=True):
        expected = by_torchvision(tree / "train" / path, SIZE, options.get("resize_size", 18))
        assert torch.equal(image, expected), path


@pytest.mark.parametrize("shape", [(5, 9), (31, 7), (16, 16), (17, 16), (224, 31), (100, 3)])
def test_images_of_any_size_give_the_same_pixels_as_torchvision(tmp_path, shape):
    write(tmp_path, [("a", "a.png", shape, "RGB")])
    content = (tmp_path / "a" / "a.png").read_bytes()
    assert torch.equal(Decoder(SIZE, 18)(content, "a", None), by_torchvision(tmp_path / "a" / "a.png", SIZE, 18))


def test_in_memory_holds_what_decoding_gives(tree):
    held, streamed = load(tree, in_memory=True), load(tree, resize_size=SIZE)
    for split in ("train", "test"):
        images, labels = held[split]
        assert torch.equal(images, streamed[split].read(range(len(labels)), None))
        assert torch.equal(labels, streamed[split].labels)


def test_the_random_crop_depends_on_seed_and_index_alone(tree):
    source = load(tree)["train"]
    together = source.read(range(8), 5)
    apart = torch.cat([source.read([index], 5) for index in reversed(range(8))]).flip(0)
    assert torch.equal(together, apart)
    assert torch.equal(source.read([2, 6], 5), together[[2, 6]])
    assert not torch.equal(source.read(range(8), 6), together)
    assert crop_seed(5, 2) != crop_seed(5, 3)


def test_a_random_crop_equals_torchvisions_resized_crop_of_the_same_box(tree):
    source = load(tree)["train"]
    for index, path in enumerate(source.paths):
        image = Image.open(tree / "train" / path)
        image = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
        left, top, width, height = random_box(*image.size, Generator().manual_seed(crop_seed(3, index)))
        cropped = v2.functional.resized_crop(image, top, left, height, width, [SIZE, SIZE])
        assert torch.equal(source.read([index], 3)[0], v2.functional.pil_to_tensor(cropped))


@pytest.mark.parametrize("shape", [(40, 30), (200, 20), (3, 90), (1, 1)])
def test_random_boxes_are_distributed_as_torchvisions(shape):
    """n = 4,000 boxes on each side, seed 0; means of area, ratio and centre differ by < 5 standard errors."""
    (width, height), count = shape, 4000
    torch.manual_seed(0)
    theirs = [
        v2.RandomResizedCrop(8).make_params([torch.empty(3, height, width, dtype=torch.uint8)]) for _ in range(count)
    ]
    generator = Generator().manual_seed(0)
    ours = torch.tensor([random_box(width, height, generator) for _ in range(count)], dtype=torch.float64)
    theirs = torch.tensor([[box["left"], box["top"], box["width"], box["height"]] for box in theirs]).double()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()

    def numbers(boxes):
        left, top, wide, high = boxes.T
        return torch.stack([wide * high, wide / high, left + wide / 2, top + high / 2])

    a, b = numbers(ours), numbers(theirs)
    error = ((a.var(1) + b.var(1)) / count).sqrt()
    assert ((a.mean(1) - b.mean(1)).abs() <= 5 * error + 1e-9).all()


def test_training_crops_and_evaluation_does_not(tree):
    splits = load_data(DataConfig(name="image_folder", root=str(tree), batch_size=2, options={"image_size": SIZE}))
    train, test = splits.train, splits.test
    first = torch.cat([inputs for inputs, _ in train.batches(3)])
    assert torch.equal(first, torch.cat([inputs for inputs, _ in train.batches(5)]))
    inputs, labels = next(train.epoch(1, [7]))
    assert sorted(labels.tolist()) == sorted(train.all_labels().tolist())
    assert not any(torch.equal(one, other) for one in inputs for other in first)
    assert train.augmentation.flip
    assert not splits.validation.augmentation.does_something
    assert not test.augmentation.does_something


def test_with_a_test_folder_val_is_the_validation_set(tree):
    write(tree / "test", VARIED[5:], seed=2)
    splits = load_data(DataConfig(name="image_folder", root=str(tree), batch_size=2, options={"image_size": SIZE}))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 5, 3)


def test_grey_of_16_bits_keeps_its_high_bytes():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 256, 30_000, 65_535]] * 4, dtype=np.uint16)).save(buffer, "PNG")
    image = Decoder(4, 4)(buffer.getvalue(), "a", None)
    assert image[:, 0].tolist() == [[0, 1, 117, 255]] * 3


def test_pixels_of_32_bits_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="a.tif must be an image that can be read; .*its pixels have 32 bits"):
        Decoder(4, 4)(buffer.getvalue(), "a.tif", None)


def test_a_palette_with_transparent_colours_is_read_as_pillow_does():
    image = picture(np.random.default_rng(0), 8, 8, "P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(16)))
    assert torch.equal(Decoder(8, 8)(buffer.getvalue(), "a", None), v2.functional.pil_to_tensor(image.convert("RGB")))


def test_a_class_without_images_keeps_its_label(tree):
    shutil.rmtree(tree / "train" / "bee")
    (tree / "train" / "bee").mkdir()
    with pytest.warns(UserWarning, match="1 of 3 classes have no image in .*train, such as 'bee'"):
        loaded = load(tree)
    assert loaded["num_classes"] == 3
    assert loaded["train"].labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert loaded["test"].labels.tolist() == [0, 0, 0, 1, 1]


def test_a_class_that_only_training_has_is_reported(tree):
    shutil.rmtree(tree / "val" / "ant")
    with pytest.warns(UserWarning, match="2 of 3 classes have no image in .*val, such as 'ant'"):
        loaded = load(tree)
    assert loaded["test"].labels.tolist() == [1, 1]


def test_a_class_that_training_does_not_have_is_refused(tree):
    (tree / "val" / "dog").mkdir()
    with pytest.raises(ValueError, match="val must hold the classes of the training set; 'dog' is none of them"):
        load(tree)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_missing_folder_is_named(tree, missing):
    shutil.rmtree(tree / missing)
    with pytest.raises(ValueError, match=rf"train/<class>/ and val/<class>/; there is no .*{missing}\."):
        load(tree)


def test_a_folder_without_images_is_named(tmp_path):
    for folder in ("train/ant", "val/ant"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="train must hold images in a folder for each class; there is none"):
        load(tmp_path)


def test_hidden_files_and_folders_are_no_data(tree):
    before = load(tree)["train"].paths
    (tree / "train" / "ant" / "._a.jpg").write_bytes(b"left by another system")
    for hidden in (".trash", "ant/.ipynb_checkpoints"):
        (tree / "train" / hidden).mkdir()
        shutil.copy(tree / "train" / "ant" / "a.jpg", tree / "train" / hidden / "a.jpg")
    loaded = load(tree)
    assert loaded["train"].paths == before
    assert loaded["num_classes"] == 3


def test_links_to_folders_and_files_elsewhere_are_followed(tree, tmp_path):
    expected = load(tree)["train"].labels.tolist()
    shutil.move(tree / "train" / "bee", tmp_path / "elsewhere")
    (tree / "train" / "bee").symlink_to(tmp_path / "elsewhere")
    shutil.move(tree / "train" / "ant" / "a.jpg", tmp_path / "a.jpg")
    (tree / "train" / "ant" / "a.jpg").symlink_to(tmp_path / "a.jpg")
    assert load(tree)["train"].labels.tolist() == expected


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/ant/loop", ".."),  # a loop
        ("train/ant/again", "../bee"),  # the images of one class with the label of another
        ("test", "val"),  # validation images as test images
    ],
)
def test_a_link_to_a_folder_that_is_read_already_is_refused(tree, link, target):
    (tree / link).symlink_to(target)
    with pytest.raises(ValueError, match="leads to the same files as .* would be read twice. Remove one of them."):
        load(tree)


def test_links_to_images_that_are_read_already_are_refused_with_their_number(tree):
    (tree / "val" / "bee" / "copy.jpg").symlink_to("../../train/ant/a.jpg")
    (tree / "val" / "bee" / "other.jpg").symlink_to("../../train/ant/a.jpg")
    with pytest.raises(ValueError, match="2 links lead to images that are read already, such as .*copy.jpg|other.jpg"):
        load(tree)


def test_files_that_are_no_images_are_counted(tree):
    (tree / "train" / "ant" / "notes.txt").touch()
    (tree / "val" / "bee" / "b.gif").touch()
    (tree / "val" / "bee" / ".hidden").touch()
    with pytest.warns(UserWarning, match="2 files under .* are not images of a known kind and are left out, such as"):
        load(tree)


def test_pipes_and_images_outside_of_a_class_are_counted(tree):
    before = load(tree)["train"].paths
    os.mkfifo(tree / "train" / "ant" / "pipe.jpg")
    shutil.copy(tree / "train" / "ant" / "a.jpg", tree / "train" / "loose.jpg")
    with pytest.warns(UserWarning, match="2 files under .* are left out"):
        assert load(tree)["train"].paths == before


def test_a_link_that_leads_to_no_file_is_named(tree):
    (tree / "train" / "ant" / "gone.jpg").symlink_to("nothing")
    with pytest.raises(ValueError, match=r"Cannot read .*gone.jpg: the link leads to no file"):
        load(tree)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_image_is_named(tree, damage, in_memory):
    path = tree / "train" / "ant" / "a.jpg"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no image"}[damage])
    with pytest.raises(ValueError, match=rf"{path} must be an image that can be read; it is damaged[^<]*\."):
        loaded = load(tree, in_memory=in_memory)
        loaded["train"].read([0], 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_damaged_bytes_give_an_image_or_a_clear_error(kind):
    """240 images with flipped or missing bytes."""
    rng = np.random.default_rng(3)
    buffer = io.BytesIO()
    picture(rng, 20, 30).save(buffer, kind)
    for attempt in range(60):
        damaged = bytearray(buffer.getvalue())
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        damaged = damaged[: rng.integers(1, len(damaged))] if attempt % 2 else damaged
        try:
            assert Decoder(8, 8)(bytes(damaged), "x", None).shape == (3, 8, 8)
        except ValueError as error:
            assert str(error).startswith("x must be an image that can be read; it is damaged")


def test_a_file_that_vanished_is_named(tree):
    source = load(tree)["train"]
    (tree / "train" / "ant" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"Cannot read .*a\.jpg: No such file"):
        source.read([0], None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "data.options.image_size must be a whole number, at least 1; got 0"),
        ({"image_size": "big"}, "data.options.image_size must be a whole number, at least 1; got 'big'"),
        ({"image_size": 16, "resize_size": 15}, "data.options.resize_size must be a whole number, at least 16; got 15"),
        ({"image_size": 16, "resize_size": 0}, "data.options.resize_size must be a whole number, at least 16; got 0"),
        ({"block_size": 0}, "data.options.block_size must be a whole number, at least 1; got 0"),
        ({"block_size": 4, "in_memory": True}, "data.options.block_size has no effect on images .* in memory"),
    ],
)
def test_sizes_out_of_range_are_refused(tree, options, message):
    with pytest.raises(ValueError, match=message):
        image_folder(str(tree), **options)


def test_sizes_that_are_left_out():
    assert make_decoder(None, None, False) == Decoder(224, 256)
    assert make_decoder(None, None, True) == Decoder(224, 224)
    assert make_decoder(64, None, None) == Decoder(64, 73)


def test_a_root_of_tilde_is_the_home(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    assert len(image_folder(f"~/{tree.name}")["train"]) == 8


def test_a_relative_root_is_that_of_the_folder_in_which_it_was_given(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tree.parent)
    loaded = image_folder(tree.name, SIZE)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(loaded["train"].read(range(8), None), load(tree)["train"].read(range(8), None))


def test_imagenet_has_a_thousand_classes(tree):
    with pytest.raises(ValueError, match="ImageNet's 1000 classes in train/; .* has 3. Use data.name=image_folder"):
        imagenet(str(tree))
    for number in range(997):
        (tree / "train" / f"n{number:08d}").mkdir()
    with pytest.warns(UserWarning, match="classes have no image in .*train"):
        loaded = imagenet(str(tree))
    assert loaded["num_classes"] == 1000
    assert loaded["train"].decoder == Decoder(224, 256)


def test_listing_a_thousand_classes_takes_no_search_for_each_file(tmp_path):
    """10,000 files of 1,000 classes; the names are looked up, not searched for."""
    classes = [f"n{number:04d}" for number in range(1000)]
    for name in classes:
        (tmp_path / name).mkdir()
        for number in range(10):
            os.close(os.open(tmp_path / name / f"{number}.jpg", os.O_CREAT | os.O_WRONLY))

    class Counted(list):
        searches = 0

        def index(self, *arguments):
            Counted.searches += 1
            return super().index(*arguments)

    source = FolderSource(tmp_path, Counted(classes), Decoder(8, 8), FolderWalk(), crops=False)
    assert torch.equal(source.labels, torch.arange(1000).repeat_interleave(10))
    assert Counted.searches == 0
