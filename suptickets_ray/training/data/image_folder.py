"""Folders of image files: root/train/<class>/..., root/val/<class>/... ."""

from __future__ import annotations

import os
import warnings
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
    """Images that are stored encoded, e.g. as JPEG. A subclass reads them in `contents`."""

    def __init__(self, labels: Tensor, decoder: Decoder, *, crops: bool) -> None:
        """Sets labels and decoder.

        Args:
            labels: Labels (n,).
            decoder: Decodes the contents to pixels.
            crops: Whether training reads random crops; otherwise the seed is ignored.
        """
        self.labels, self.decoder, self.crops = labels, decoder, crops

    @abstractmethod
    def contents(self, indices: Sequence[int]) -> list[tuple[str, bytes]]:
        """Returns the name and the encoded bytes of each image."""

    def read(self, indices: Sequence[int], seed: int | None) -> Tensor:
        """Returns uint8 images (len(indices), 3, size, size); see `BlockSource`."""
        seed = seed if self.crops else None
        pairs = zip(indices, self.contents(indices), strict=True)
        return torch.stack([self.decoder(content, name, crop_seed(seed, index)) for index, (name, content) in pairs])

    def read_all(self) -> tuple[Tensor, Tensor]:
        """Returns all images (n, 3, size, size), centre-cropped, and labels (n,), to hold in memory."""
        pieces = torch.arange(len(self)).split(64)
        with ThreadPoolExecutor(_DECODING_THREADS) as pool:
            images = list(pool.map(lambda piece: self.read(piece.tolist(), None), pieces))
        return torch.cat(images), self.labels


class FolderSource(EncodedSource):
    """The image files of one folder, sorted by class and name, or in a fixed random order."""

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        decoder: Decoder,
        walk: FolderWalk,
        *,
        crops: bool,
        mixed: bool = False,
    ) -> None:
        """Lists the files without opening them.

        Args:
            folder: Folder of a split, with a folder for each class.
            classes: Names of all classes.
            decoder: Decodes the contents to pixels.
            walk: Lists the files of all splits.
            crops: Whether training reads random crops.
            mixed: Whether the list is in a fixed random order. Streamed training sets need this: an epoch mixes only a
                few blocks at a time, and blocks of neighbours would be of one class.

        Raises:
            ValueError: If there is no image, or a folder that is not a class.
        """
        self.folder = folder
        found, label_of = _subfolders(folder), {name: label for label, name in enumerate(classes)}
        if unknown := sorted(set(found) - set(classes)):
            raise ValueError(f"{folder} must hold the classes of the training set; {unknown[0]!r} is none of them.")
        walk.skip_files(folder)
        images = {name: walk.images(folder, name) for name in found}
        listed = [(path, label_of[name]) for name in found for path in images[name]]
        if not listed:
            raise ValueError(f"{folder} must hold images in a folder for each class; there is none.")
        if empty := [name for name in classes if not images.get(name)]:
            warnings.warn(
                f"{len(empty)} of {len(classes)} classes have no image in {folder}, such as {empty[0]!r}.", stacklevel=2
            )
        if mixed:
            listed = shuffled(listed)
        self.paths = [path for path, _ in listed]
        super().__init__(torch.tensor([label for _, label in listed]), decoder, crops=crops)

    def contents(self, indices: Sequence[int]) -> list[tuple[str, bytes]]:
        """Returns the path and the bytes of each file. Raises ValueError if one cannot be read."""
        paths = [self.folder / self.paths[index] for index in indices]
        try:
            return [(str(path), path.read_bytes()) for path in paths]
        except OSError as error:
            raise ValueError(f"Cannot read {error.filename}: {error.strerror}.") from error


def shuffled(listed: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Returns the list in a fixed random order, so that neighbours are of different classes."""
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

    Without root/test, root/val is the test set, and the validation set is taken from the training set. With root/test,
    that is the test set and root/val the validation set.

    Args:
        root: The folder.
        image_size: Height and width of the network's input.
        resize_size: Length of the shorter side before the centre crop; 8/7 of `image_size` when left out, or
            `image_size` in memory.
        in_memory: Whether to decode all images once, without random resized crops: for small sets of small images.
        block_size: Number of streamed images read at once; a few blocks at a time are mixed. 128 when left out.

    Raises:
        ValueError: If a folder is missing or holds no images, or a size is out of range.
    """
    base = Path(root).expanduser().absolute()  # workers have another working directory
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
    walk, sources = FolderWalk(), {}
    for split, folder in folders.items():
        # Also in memory: converted data has this order, and must give the same bits in every form.
        source = FolderSource(base / folder, classes, decoder, walk, crops=not in_memory, mixed=split == "train")
        source.set_block_size(block_size, in_memory)
        sources[split] = source
    walk.check_links()
    if walk.skipped:
        warnings.warn(
            f"{len(walk.skipped)} files under {base} are not images of a known kind and are left out, such as "
            f"{walk.skipped[0]}.",
            stacklevel=2,
        )
    loaded |= {split: source.read_all() if in_memory else source for split, source in sources.items()}
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


class FolderWalk:
    """Walks the folders of a data set once; counts skipped files and refuses files that are reached twice."""

    def __init__(self) -> None:
        """Starts empty. One walk serves all splits, which must not share images."""
        self._folders: dict[str, str] = {}
        self._links: list[str] = []
        self.skipped: list[str] = []
        """Files that are not images of a known kind, or in no class; hidden files do not count."""

    def skip_files(self, folder: Path) -> None:
        """Counts the visible files that are directly in the folder of a split, in no class."""
        with os.scandir(folder) as entries:
            self.skipped += [e.path for e in entries if not e.name.startswith(".") and not e.is_dir()]

    def images(self, folder: Path, name: str) -> list[str]:
        """Returns the sorted paths of a class's visible images, relative to the folder of its split.

        Links are followed. `os.scandir` finds them without a call per file, which is slow on network storage.

        Raises:
            ValueError: If links lead to a folder a second time, or the class cannot be read.
        """
        found, waiting = [], [name]
        while waiting:
            relative = waiting.pop()
            place = str(folder / relative)
            if (first := self._folders.setdefault(os.path.realpath(place), place)) != place:
                raise ValueError(
                    f"{place} must be read once; it leads to the same files as {first}, whose images would "
                    "be read twice. Remove one of them."
                )
            with os.scandir(place) as entries:
                for entry in entries:
                    path = f"{relative}/{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        waiting.append(path)
                    elif entry.is_symlink() and not entry.is_file():
                        raise ValueError(f"Cannot read {entry.path}: the link leads to no file. Remove it.")
                    elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                        found.append(path)
                        self._links += [entry.path] if entry.is_symlink() else []
                    else:
                        self.skipped.append(entry.path)
        return sorted(found)

    def check_links(self) -> None:
        """Raises ValueError if links lead to an image that is read under another path as well."""
        seen: dict[str, str] = {}
        twice = []
        for link in self._links:
            target = os.path.realpath(link)
            other = seen.setdefault(target, link)
            folder, name = os.path.split(target)
            if (
                other == link
                and folder in self._folders
                and not name.startswith(".")
                and name.lower().endswith(EXTENSIONS)
            ):
                other = target
            if other != link:
                twice.append((link, other))
        if twice:
            raise ValueError(
                f"every image must be read once; {len(twice)} links lead to images that are read already, such as "
                f"{twice[0][0]} to {twice[0][1]}. Remove the links."
            )
