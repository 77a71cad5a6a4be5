"""Checks the files of MNIST and CIFAR before torchvision reads them, so that an error names the file, and none runs."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_UBYTE = 8
"""IDX's number of the type uint8."""
_REMEDY = "Remove it, and let it be fetched with data.download=true."


def check_idx(images_path: Path, labels_path: Path, title: str, num_classes: int) -> None:
    """Checks one split's files of images (n, 28, 28) and labels (n,), both uint8.

    Args:
        images_path: File of the images.
        labels_path: File of the labels.
        title: The data set's name.
        num_classes: Labels are below.

    Raises:
        ValueError: If a file is missing, damaged, or does not fit.
    """
    for path in (images_path, labels_path):
        if not path.is_file():
            raise _missing(title, path, "its four unpacked files")
    num_images, *image_shape = _idx_shape(images_path, 3, title)
    if image_shape != [28, 28] or not num_images:
        raise ValueError(
            f"{images_path} must hold images of 28 x 28 pixels for {title}; it holds {num_images} of "
            f"{image_shape[0]} x {image_shape[1]}. {_REMEDY}"
        )
    (num_labels,) = _idx_shape(labels_path, 1, title)
    highest = max(labels_path.read_bytes()[8:], default=0)
    if num_labels != num_images or highest >= num_classes:
        raise ValueError(
            f"{labels_path} must hold a label below {num_classes} for each of the {num_images} images of {title}; it "
            f"holds {num_labels}, up to {highest}. {_REMEDY}"
        )


def _idx_shape(path: Path, num_dimensions: int, title: str) -> list[int]:
    """The shape that an IDX file's first bytes give. Raises ValueError if the rest is not of this shape."""
    size = 4 * (1 + num_dimensions)
    with path.open("rb") as file:
        header = file.read(size)
    if len(header) < size or header[:4] != bytes((0, 0, _UBYTE, num_dimensions)):
        raise ValueError(
            f"{path} must be an unpacked IDX file of {title}, bytes in {num_dimensions} dimensions; it is damaged or "
            f"something else. {_REMEDY}"
        )
    shape = list(struct.unpack(f">{num_dimensions}I", header[4:]))
    expected, found = size + int(np.prod(shape, dtype=object)), path.stat().st_size
    if found != expected:
        raise ValueError(f"{path} must have {expected} bytes for {title}, as it says itself; it has {found}. {_REMEDY}")
    return shape


def check_cifar(paths: Sequence[Path], meta_path: Path, names_key: str, title: str, num_classes: int) -> list[str]:
    """Checks that pickled batches hold images (n, 3072) as uint8 and labels, and nothing that could run.

    Args:
        paths: Files of the batches.
        meta_path: File of the classes' names.
        names_key: Key of the names in it.
        title: The data set's name.
        num_classes: Labels are below, and there are so many names.

    Returns:
        The names of the classes.

    Raises:
        ValueError: If a file is missing, damaged, or holds something else.
    """
    for path in (*paths, meta_path):
        if not path.is_file():
            raise _missing(title, path, f"the unpacked folder {path.parent.name}")
        try:
            content = _unpickle_arrays(path)
            if path != meta_path:
                _check_batch(content, num_classes)
            elif len(names := list(content[names_key])) != num_classes:
                raise ValueError(f"it must name {num_classes} classes")
        except Exception as error:  # damage shows itself in any way
            reason = f"there is no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path} must be a file of {title}; it is damaged or holds more than arrays: {reason}. {_REMEDY}"
            ) from error
    return names


def _check_batch(content: Any, num_classes: int) -> None:
    data = content["data"]
    labels = content["labels"] if "labels" in content else content["fine_labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError("its images must be uint8 of shape (n, 3072)")
    if not isinstance(labels, list) or len(labels) != len(data) or not len(data):
        raise ValueError(f"its {len(data)} images must have a label each")
    if any(type(label) is not int or not 0 <= label < num_classes for label in labels):
        raise ValueError(f"its labels must be whole numbers from 0 to {num_classes - 1}")


def _unpickle_arrays(path: Path) -> Any:
    """What a pickle of plain values and arrays holds. Raises pickle.UnpicklingError if it names more."""
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain values and NumPy arrays; whatever else a file names is refused, so nothing in it can run."""

    _ALLOWED = frozenset(
        {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Returns what makes an array. Raises pickle.UnpicklingError for anything else."""
        module = module.replace("numpy.core.", "numpy._core.")  # the old name, in the published files
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _missing(title: str, path: Path, what: str) -> ValueError:
    return ValueError(
        f"data.root must hold {title}; there is no {path}. Put {what} there, say with data.root where it lies, or let "
        "it be fetched with data.download=true."
    )
