"""Checks the files of MNIST before torchvision reads them, and reads those of CIFAR; errors name the file."""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_UBYTE = 8
"""IDX's code of the type uint8."""
_REMEDY = "Remove it, and fetch it with data.download=true."


def check_idx(images_path: Path, labels_path: Path, title: str, num_classes: int) -> None:
    """Checks one split's files of images (n, 28, 28) and labels (n,), both uint8.

    Args:
        images_path: File of the images.
        labels_path: File of the labels.
        title: The data set's name.
        num_classes: Number of classes; labels are below it.

    Raises:
        ValueError: If a file is missing, damaged, or does not fit the data set.
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
    """Returns the shape in an IDX file's header. Raises ValueError if the file's size does not fit the shape."""
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
        raise ValueError(f"{path} must have {expected} bytes by its header, for {title}; it has {found}. {_REMEDY}")
    return shape


def read_cifar(
    paths: Sequence[Path], meta_path: Path, names_key: str, title: str, num_classes: int
) -> list[tuple[NDArray[np.uint8], list[int]]]:
    """Reads pickled batches safely: a file cannot choose what is called, imported or allocated.

    Args:
        paths: Files of the batches.
        meta_path: File of the class names.
        names_key: Key of the names in it.
        title: Name of the data set, for errors.
        num_classes: Number of class names; labels are below it.

    Returns:
        Images (n, 3072), red, green and blue planes, and n labels of each batch.

    Raises:
        ValueError: If a file is missing, damaged, or holds anything else.
    """
    batches = []
    for path in (*paths, meta_path):
        if not path.is_file():
            raise _missing(title, path, f"the unpacked folder {path.parent.name}")
        try:
            content = _unpickle_arrays(path)
            if path != meta_path:
                batches.append(_checked_batch(content, num_classes))
            elif len(content[names_key]) != num_classes:
                raise ValueError(f"it must name {num_classes} classes")
        except Exception as error:  # a damaged file may raise any type
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error) or "it ends too early"
            raise ValueError(
                f"{path} must be a file of {title}; it is damaged or holds more than arrays: {reason}. {_REMEDY}"
            ) from error
    return batches


def _checked_batch(content: Any, num_classes: int) -> tuple[NDArray[np.uint8], list[int]]:
    data = content["data"]
    labels = content["labels"] if "labels" in content else content["fine_labels"]
    if not isinstance(data, _Array) or data.pixels is None or data.pixels.ndim != 2 or data.pixels.shape[1] != 3072:
        raise ValueError("its images must be uint8 of shape (n, 3072)")
    if not isinstance(labels, list) or len(labels) != len(data.pixels) or not labels:
        raise ValueError(f"its {len(data.pixels)} images must have a label each")
    if any(type(label) is not int or not 0 <= label < num_classes for label in labels):
        raise ValueError(f"its labels must be whole numbers from 0 to {num_classes - 1}")
    return data.pixels, labels


def _unpickle_arrays(path: Path) -> Any:
    """Returns what a pickle of plain values and uint8 arrays holds. Raises pickle.UnpicklingError if it names more."""
    content = path.read_bytes()
    return _ArrayUnpickler(io.BytesIO(content), budget=2 * len(content)).load()


class _Dtype:
    """Replaces numpy.dtype; only uint8 exists."""

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and alignment, which do not matter for single bytes."""


class _Array:
    """Replaces an array until its state is loaded: a uint8 array whose shape and bytes agree."""

    pixels: NDArray[np.uint8] | None = None

    def __init__(self, spend: Callable[[int], None]) -> None:
        self._spend = spend

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Loads NumPy's state (version, shape, dtype, is_fortran, bytes)."""
        _, shape, _, is_fortran, raw = state
        self._spend(len(raw) if isinstance(raw, str) else 0)
        self.pixels = _pixels(raw, shape, "F" if is_fortran else "C")


def _pixels(raw: object, shape: object, order: object) -> NDArray[np.uint8]:
    if isinstance(raw, str):  # bytes that Python 2 pickled
        raw = raw.encode("latin1")
    sizes = tuple(int(size) for size in shape) if isinstance(shape, tuple) else ()
    if not isinstance(raw, (bytes, bytearray)) or min(sizes, default=-1) < 0 or math.prod(sizes) != len(raw):
        raise pickle.UnpicklingError("an array must have as many bytes as its shape says")
    return np.frombuffer(raw, np.uint8).reshape(sizes, order="F" if order == "F" else "C")


# The Python implementation, because the C one resizes its memo to any index that a file names.
class _ArrayUnpickler(pickle._Unpickler):
    """Reads plain values and uint8 arrays. Names in a file resolve to functions of this module.

    NumPy's constructors would follow pointers that the file chooses.
    """

    def __init__(self, file: IO[bytes], budget: int) -> None:
        super().__init__(file, encoding="latin1")
        self._budget = budget
        """Bytes that calls may still allocate: a file can repeat a string at a cost of one byte each time."""
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(self._spend),
            ("numpy._core.numeric", "_frombuffer"): self._from_buffer,
            ("numpy", "ndarray"): _refuse,
            ("numpy", "dtype"): self._dtype,
            ("_codecs", "encode"): self._encode,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Returns the replacement of a name. Raises pickle.UnpicklingError for names other than those of arrays."""
        module = module.replace("numpy.core.", "numpy._core.")  # the old name, in the published files
        if (module, name) not in self._functions:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._functions[module, name]

    def _spend(self, num_bytes: int) -> None:
        self._budget -= num_bytes
        if self._budget < 0:
            raise pickle.UnpicklingError("it expands to more than twice its size")

    def _dtype(self, name: object, *_: object) -> _Dtype:
        if name not in ("u1", "|u1", "uint8"):
            raise pickle.UnpicklingError(
                f"its images must be uint8 of shape (n, 3072); one array is {str(name)[:20]!r}"
            )
        return _Dtype()

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it encodes text as {str(encoding)[:20]!r}")
        self._spend(len(text))
        return text.encode("latin1")

    def _from_buffer(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("its arrays must be uint8")
        array = _Array(self._spend)
        array.pixels = _pixels(raw, shape, order)
        return array


def _refuse(*_: object) -> None:
    raise pickle.UnpicklingError("it calls numpy.ndarray")


def _missing(title: str, path: Path, what: str) -> ValueError:
    return ValueError(
        f"data.root must hold {title}; there is no {path}. Put {what} there, set data.root to its folder, or fetch it "
        "with data.download=true."
    )
