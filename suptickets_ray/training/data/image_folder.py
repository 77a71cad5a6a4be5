"""Folders of image files: root/train/<class>/..., root/val/<class>/... ."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suptickets_ray.training.data.decoding import Decoder, crop_seed, make_decoder
from suptickets_ray.training.data.streaming import BlockSource

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DECODING_THREADS = 4


class EncodedSource(BlockSource):
    """Images that lie somewhere as files of their own kind. Whoever knows where gives `contents`."""

    def __init__(self, labels: Tensor, decoder: Decoder, *, crops: bool) -> None:
        """Keeps the labels.

        Args:
            labels: Labels (n,).
            decoder: Makes pixels of the contents.
            crops: Whether training reads random crops; the seed is not looked at otherwise.
        """
        self.labels, self.decoder, self.crops = labels, decoder, crops

    @abstractmethod
    def contents(self, indices: Sequence[int]) -> list[tuple[str, bytes]]:
        """Returns name and encoded bytes of each of the images."""

    def read(self, indices: Sequence[int], seed: int | None) -> Tensor:
        """Returns uint8 images (len(indices), 3, size, size); see `BlockSource`."""
        seed = seed if self.crops else None
        pairs = zip(indices, self.contents(indices), strict=True)
        return torch.stack([self.decoder(content, name, crop_seed(seed, index)) for index, (name, content) in pairs])

    def read_all(self) -> tuple[Tensor, Tensor]:
        """Returns all images (n, 3, size, size), centre-cropped, and labels (n,): a set for memory."""
        pieces = torch.arange(len(self)).split(64)
        with ThreadPoolExecutor(_DECODING_THREADS) as pool:
            images = list(pool.map(lambda piece: self.read(piece.tolist(), None), pieces))
        return torch.cat(images), self.labels


class FolderSource(EncodedSource):
    """The image files of one folder, class by class in the order of their names, or always equally mixed."""

    def __init__(
        self, folder: Path, classes: Sequence[str], decoder: Decoder, *, crops: bool, mixed: bool = False
    ) -> None:
        """Lists the files; none is opened.

        Args:
            folder: The folder of a split, which holds one for each class.
            classes: Names of all classes.
            decoder: Makes pixels of the contents.
            crops: Whether training reads random crops.
            mixed: Whether the list is shuffled once and for all. What is streamed must be: an epoch mixes the examples
                of a few blocks at a time, and blocks of neighbours would be of one class.

        Raises:
            ValueError: If there is no image, or a folder that is no class.
        """
        self.folder = folder
        found, label_of = _subfolders(folder), {name: label for label, name in enumerate(classes)}
        if unknown := sorted(set(found) - set(classes)):
            raise ValueError(f"{folder} must hold the classes of the training set; {unknown[0]!r} is none of them.")
        listed = [(path, label_of[name]) for name in found for path in _images(folder, name)]
        if not listed:
            raise ValueError(f"{folder} must hold images in a folder for each class; there is none.")
        if mixed:
            listed = shuffled(listed)
        self.paths = [path for path, _ in listed]
        super().__init__(torch.tensor([label for _, label in listed]), decoder, crops=crops)

    def contents(self, indices: Sequence[int]) -> list[tuple[str, bytes]]:
        """Returns path and bytes of each of the files. Raises ValueError if one cannot be read."""
        paths = [self.folder / self.paths[index] for index in indices]
        try:
            return [(str(path), path.read_bytes()) for path in paths]
        except OSError as error:
            raise ValueError(
                f"{error.filename} must be a file that can be read; it failed: {error.strerror}."
            ) from error


def shuffled(listed: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Returns the list in an order that is always the same, in which neighbours are of any class."""
    order = torch.randperm(len(listed), generator=torch.Generator().manual_seed(0)).tolist()
    return [listed[index] for index in order]


def image_folder(
    root: str,
    image_size: int = 224,
    resize_size: int | None = None,
    in_memory: bool = False,
    block_size: int | None = None,
) -> dict[str, Any]:
    """Images in root/train/<class>/ and root/val/<class>/; streamed with random resized crops, or held in memory.

    What lies in root/val is the test set, and validation is cut out of the training set; where there is a root/test,
    that is the test set and root/val the validation set.

    Args:
        root: The folder.
        image_size: Height and width of the network's input.
        resize_size: What the shorter side is scaled to before the centre crop; 8/7 of `image_size` when left out, and
            `image_size` itself in memory.
        in_memory: Decode all images once, without random resized crops: for small sets of small images.
        block_size: Images that are read at once when they are streamed; some blocks at a time are mixed. 128 when
            left out.

    Raises:
        ValueError: If a folder is missing or holds no images, or a size is out of range.
    """
    base = Path(root).expanduser().absolute()  # workers run elsewhere
    for name in ("train", "val"):
        if not (base / name).is_dir():
            raise ValueError(
                f"data.root must hold images in train/<class>/ and val/<class>/; there is no {base / name}."
            )
    decoder = make_decoder(image_size, resize_size, in_memory)
    classes = _subfolders(base / "train")
    folders = {"train": "train"}
    folders |= {"validation": "val", "test": "test"} if (base / "test").is_dir() else {"test": "val"}
    loaded: dict[str, Any] = {"num_classes": len(classes), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    for split, folder in folders.items():
        # Also in memory: what is converted has this order, and is to give the same bits however it is read.
        source = FolderSource(base / folder, classes, decoder, crops=not in_memory, mixed=split == "train")
        source.set_block_size(block_size, in_memory)
        loaded[split] = source.read_all() if in_memory else source
    return loaded | {"augmentation": {"flip": True}}


def imagenet(root: str, image_size: int = 224, resize_size: int = 256) -> dict[str, Any]:
    """ImageNet's training and validation images (ILSVRC 2012), in a folder for each of the 1,000 classes.

    Source: Russakovsky et al., 1409.0575.

    Raises:
        ValueError: As `image_folder`, and if there are not 1,000 classes.
    """
    loaded = image_folder(root, image_size, resize_size)
    if loaded["num_classes"] != 1000:
        raise ValueError(
            f"data.root must hold ImageNet's 1000 classes in train/; {Path(root).absolute()} has "
            f"{loaded['num_classes']}. Use data.name=image_folder for other images."
        )
    return loaded


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, name: str) -> list[str]:
    """Paths of the images of a class, relative to the folder of its split, sorted; nothing that is hidden."""
    found = []
    for place, subfolders, files in os.walk(folder / name, followlinks=True):
        subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith(".")]
        relative = os.path.relpath(place, folder)
        found += [f"{relative}/{file}" for file in files if file.lower().endswith(EXTENSIONS) and file[0] != "."]
    return sorted(found)
