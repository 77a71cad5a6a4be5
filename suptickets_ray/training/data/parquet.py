"""Images in Parquet files on any path that pyarrow.fs supports: encoded bytes or tensors, and a label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs
from torch import Tensor

from suptickets_ray.training.data.decoding import Decoder, make_decoder
from suptickets_ray.training.data.image_folder import IMAGENET_MEAN, IMAGENET_STD, EncodedSource
from suptickets_ray.training.data.parquet_files import IMAGE_COLUMN, LABEL_COLUMN, ParquetFiles
from suptickets_ray.training.data.streaming import BlockSource

METADATA_KEY = b"suptickets_ray.data"
"""Schema metadata that `convert` writes: JSON of num_classes, mean, std and augmentation."""
FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test", "val")}
"""Possible folders of a split, of which the first existing one is used. Without test, val is the test set."""


class EncodedParquet(EncodedSource):
    """Encoded images, e.g. JPEG, in a binary column."""

    def __init__(self, files: ParquetFiles, labels: Tensor, decoder: Decoder, *, crops: bool) -> None:
        """Wraps the files; see `EncodedSource`."""
        super().__init__(labels, decoder, crops=crops)
        self._files = files

    def contents(self, indices: Sequence[int]) -> list[tuple[str, bytes]]:
        """Returns the name and the bytes of each image. Raises ValueError if a file is damaged or an image is null."""
        contents = self._files.rows(IMAGE_COLUMN, indices).to_pylist()
        names = [f"image {index} of {self._files.uri}/{self._files.folder}" for index in indices]
        if None in contents:
            raise ValueError(f"{names[contents.index(None)]} must be the bytes of an image; it is null.")
        return list(zip(names, contents, strict=True))


class TensorParquet(BlockSource):
    """Images as tensors of one shape, of any number type."""

    def __init__(self, files: ParquetFiles, labels: Tensor) -> None:
        """Wraps the files."""
        self.labels, self._files = labels, files

    def read(self, indices: Sequence[int], seed: int | None) -> Tensor:
        """Returns the tensors (len(indices), ...); there is no random crop to seed."""
        return _tensor(self._files, self._files.rows(IMAGE_COLUMN, indices))

    def read_all(self) -> tuple[Tensor, Tensor]:
        """Returns all tensors (n, ...) and labels (n,)."""
        return _tensor(self._files, self._files.column(IMAGE_COLUMN)), self.labels


def parquet(
    root: str,
    image_size: int | None = None,
    resize_size: int | None = None,
    in_memory: bool | None = None,
    block_size: int | None = None,
) -> dict[str, Any]:
    """Rows of root/train/*.parquet and root/test (or val), optionally root/validation: image and label.

    By default, encoded images are streamed with random resized crops, and tensors are held in memory. Mean, standard
    deviation and augmentation come from the files' metadata, which `suptickets data convert` writes.

    Args:
        root: Folder or URI, e.g. s3://bucket/path.
        image_size: Height and width of the network's input, for encoded images; 224 when left out.
        resize_size: Length of the shorter side before the centre crop; see `image_folder`.
        in_memory: Whether all images are decoded once, without random resized crops.
        block_size: Number of streamed images read at once; a few blocks at a time are mixed. 128 when left out.

    Raises:
        ValueError: If files are missing, damaged, or have other columns.
    """
    uri = root if "://" in root else str(Path(root).expanduser().absolute())
    files = {split: ParquetFiles(uri, folder) for split, folder in _split_folders(uri).items()}
    is_encoded = _is_encoded(files)
    if not is_encoded and (image_size is not None or resize_size is not None):
        raise ValueError("data.options.image_size has no effect on tensors, whose size is fixed. Leave it out.")
    decoder, held = make_decoder(image_size, resize_size, in_memory), not is_encoded if in_memory is None else in_memory
    settings: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if is_encoded else {}
    loaded: dict[str, Any] = {}
    highest = 0
    for split, rows in files.items():
        labels = _labels(rows)
        highest = max(highest, int(labels.max()))
        source: EncodedParquet | TensorParquet
        if is_encoded:
            source = EncodedParquet(rows, labels, decoder, crops=not in_memory)
        else:
            source = TensorParquet(rows, labels)
        source.set_block_size(block_size, held)
        loaded[split] = source.read_all() if held else source
    return {"num_classes": highest + 1, **settings, **_settings(files["train"]), **loaded}


def _split_folders(uri: str) -> dict[str, str]:
    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
        names = sorted({name for names in FOLDERS.values() for name in names})
        infos = filesystem.get_file_info([f"{root}/{name}" for name in names])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"data.root must be a path that pyarrow.fs can read; got {uri!r}: {error}.") from error
    free = [name for name, info in zip(names, infos, strict=True) if info.type == fs.FileType.Directory]
    found = {}
    for split in ("train", "test", "validation"):  # test first: it may need the folder val
        if name := next((name for name in FOLDERS[split] if name in free), None):
            found[split] = name
            free.remove(name)
        elif split != "validation":
            raise ValueError(
                f"data.root must hold .parquet files in train/ and in test/ or val/; {uri} has no {split}/. "
                "suptickets data convert makes such a folder."
            )
    return found


def _is_encoded(files: dict[str, ParquetFiles]) -> bool:
    """Whether the images are bytes of image files, rather than tensors. Raises ValueError if they are neither."""
    first = files["train"].schema.field(IMAGE_COLUMN).type
    for rows in files.values():
        kind = rows.schema.field(IMAGE_COLUMN).type
        is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        is_tensor = isinstance(kind, pa.FixedShapeTensorType) and not pa.types.is_boolean(kind.value_type)
        if not is_binary and not is_tensor:
            raise ValueError(
                f"{rows.uri}/{rows.folder} must have encoded images as bytes, or tensors of one shape and a number "
                f"type, in the column image; it is of type {kind}."
            )
        if kind != first:
            raise ValueError(
                f"{rows.uri}/{rows.folder} must have images of the same type as train; it has {kind} and not {first}."
            )
    return not isinstance(first, pa.FixedShapeTensorType)


def _settings(files: ParquetFiles) -> dict[str, Any]:
    """Returns the settings that `convert` wrote."""
    try:
        return dict(json.loads((files.schema.metadata or {}).get(METADATA_KEY, b"{}")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{files.paths[0]} must have JSON under {METADATA_KEY!r}; it is damaged: {error}.") from error


def _labels(files: ParquetFiles) -> Tensor:
    """Returns the labels, int64 (n,)."""
    column = files.column(LABEL_COLUMN)
    if not pa.types.is_integer(column.type):
        raise ValueError(f"{files.uri}/{files.folder} must have a whole number as each label; got {column.type}.")
    if column.null_count:
        raise ValueError(f"{files.uri}/{files.folder} must have a label for each image; {column.null_count} are null.")
    labels = torch.from_numpy(np.array(column.to_numpy(), dtype=np.int64))
    if int(labels.min()) < 0:
        raise ValueError(f"{files.uri}/{files.folder} must have labels of at least 0; got {int(labels.min())}.")
    return labels


def _tensor(files: ParquetFiles, column: pa.ChunkedArray) -> Tensor:
    """Returns a tensor column as one tensor (n, ...)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if array.null_count or array.storage.flatten().null_count:
        raise ValueError(f"{files.uri}/{files.folder} must have a whole tensor as each image; there are nulls.")
    return torch.from_numpy(np.array(array.to_numpy_ndarray(), order="C"))
