"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 as uint8 tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suptickets_ray.training.data.vision_files import check_idx, read_cifar

_DEFAULT_ROOT = "data"


def mnist(root: str = _DEFAULT_ROOT, download: bool = False) -> dict[str, Any]:
    """Handwritten digits: 60,000 and 10,000 images (1, 28, 28). Source: LeCun et al. 1998.

    Args:
        root: Folder that holds MNIST/raw/train-images-idx3-ubyte and so on, as torchvision lays them out.
        download: Whether to fetch missing files.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    return _read("MNIST", "MNIST", root, download, {"mean": (0.1307,), "std": (0.3081,)})


def fashion_mnist(root: str = _DEFAULT_ROOT, download: bool = False) -> dict[str, Any]:
    """Articles of clothing: 60,000 and 10,000 images (1, 28, 28). Source: Xiao et al., 1708.07747.

    Args:
        root: Folder that holds FashionMNIST/raw/train-images-idx3-ubyte and so on, as torchvision lays them out.
        download: Whether to fetch missing files.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    return _read("FashionMNIST", "Fashion-MNIST", root, download, {"mean": (0.2860,), "std": (0.3530,)})


def cifar10(root: str = _DEFAULT_ROOT, download: bool = False) -> dict[str, Any]:
    """Photographs of 10 classes: 50,000 and 10,000 images (3, 32, 32). Source: Krizhevsky 2009.

    Args:
        root: Folder that holds cifar-10-batches-py, as its archive unpacks.
        download: Whether to fetch missing files.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    statistics = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
    augmentation = {"crop_padding": 4, "crop_padding_mode": "reflect", "flip": True}
    return _read("CIFAR10", "CIFAR-10", root, download, {**statistics, "augmentation": augmentation})


def cifar100(root: str = _DEFAULT_ROOT, download: bool = False) -> dict[str, Any]:
    """Photographs of 100 classes: 50,000 and 10,000 images (3, 32, 32). Source: Krizhevsky 2009.

    Args:
        root: Folder that holds cifar-100-python, as its archive unpacks.
        download: Whether to fetch missing files.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    statistics = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
    augmentation = {"crop_padding": 4, "crop_padding_mode": "zero", "flip": True}
    return _read("CIFAR100", "CIFAR-100", root, download, {**statistics, "augmentation": augmentation})


def _read(reader_name: str, title: str, root: str, download: bool, rest: dict[str, Any]) -> dict[str, Any]:
    from torchvision import datasets  # takes seconds to import, and checking a recipe does not need it

    folder = Path(root).expanduser().absolute()
    reader = getattr(datasets, reader_name)
    is_cifar = issubclass(reader, datasets.CIFAR10)
    paths = _cifar_paths(reader, folder) if is_cifar else _idx_paths(reader, folder)
    if download and not all(path.is_file() for path in paths):
        _fetched(reader, title, folder)
    return {**(_cifar if is_cifar else _idx)(reader, title, folder, paths), **rest}


def _idx(reader: Any, title: str, folder: Path, paths: list[Path]) -> dict[str, Any]:
    reader = _checked_idx(reader, title, paths)
    splits = {name: _tensors(reader(str(folder), train=name == "train")) for name in ("train", "test")}
    return {**splits, "num_classes": len(reader.classes)}


def _cifar(reader: Any, title: str, folder: Path, paths: list[Path]) -> dict[str, Any]:
    """Reads the files without torchvision, whose unpickling runs any code that a file names."""
    num_classes = {"CIFAR10": 10, "CIFAR100": 100}[reader.__name__]
    *batch_paths, meta_path = paths
    batches = read_cifar(batch_paths, meta_path, reader.meta["key"], title, num_classes)
    num_train = len(reader.train_list)
    splits = {}
    for name, some in (("train", batches[:num_train]), ("test", batches[num_train:])):
        images = np.concatenate([pixels for pixels, _ in some]).reshape(-1, 3, 32, 32)
        splits[name] = (torch.from_numpy(images), torch.tensor([label for _, labels in some for label in labels]))
    return {**splits, "num_classes": num_classes}


def _tensors(source: Any) -> tuple[Tensor, Tensor]:
    """Images (n, 1, h, w), uint8, and labels (n,)."""
    return torch.as_tensor(source.data).unsqueeze(1).contiguous(), torch.as_tensor(source.targets).long()


def _fetched(reader: Any, title: str, folder: Path) -> None:
    try:
        reader(str(folder), download=True)
    except Exception as error:  # network, disk space or permissions
        raise ValueError(
            f"Cannot download {title} to {folder}: {error}. Check the network, the disk space and the permissions."
        ) from error


def _idx_paths(reader: Any, folder: Path) -> list[Path]:
    raw = folder / reader.__name__ / "raw"
    return [
        raw / f"{part}-ubyte"
        for split in ("train", "t10k")
        for part in (f"{split}-images-idx3", f"{split}-labels-idx1")
    ]


def _checked_idx(reader: Any, title: str, paths: list[Path]) -> Any:
    """Checks the files and returns torchvision's reader for them."""
    for images_path, labels_path in (paths[:2], paths[2:]):
        check_idx(images_path, labels_path, title, len(reader.classes))
    # Torchvision prefers the legacy files MNIST/processed/*.pt over the files that are checked.
    return type(reader.__name__, (reader,), {"_check_legacy_exist": lambda self: False})


def _cifar_paths(reader: Any, folder: Path) -> list[Path]:
    names = [name for name, _ in (*reader.train_list, *reader.test_list)] + [reader.meta["filename"]]
    return [folder / reader.base_folder / name for name in names]
