"""Converts any data set to Parquet files on any path that pyarrow.fs supports. Finished files are kept."""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs
from torch import Tensor

from suptickets_ray.training.data.examples import collate
from suptickets_ray.training.data.image_folder import EncodedSource
from suptickets_ray.training.data.parquet import FOLDERS, METADATA_KEY
from suptickets_ray.training.data.parquet_files import IMAGE_COLUMN, LABEL_COLUMN
from suptickets_ray.training.data.splits import check_loaded
from suptickets_ray.training.data.streaming import BlockSource

ROWS_PER_GROUP = 32
"""Small row groups, so that reading neighbouring rows loads few other rows."""
_SOURCE_KEY = b"suptickets_ray.source"
"""Schema metadata that identifies the data of a split: a digest of size, labels and first examples."""
_KEPT = ("num_classes", "mean", "std", "augmentation")
_TEMPORARY = re.compile(r"part-\d+-of-\d+\.parquet\.[0-9a-f]{32}\.tmp")

OnProgress = Callable[[str, int, int], None]
"""Called with the split, the number of rows written, and the total number of rows."""


@dataclass(frozen=True)
class _Part:
    """One output file."""

    split: str
    path: str
    rows: range


def convert(
    loaded: Mapping[str, Any],
    target: str,
    *,
    rows_per_file: int = 4096,
    on_progress: OnProgress = lambda split, done, total: None,
) -> int:
    """Writes a data set's splits as target/<split>/part-00000-of-00013.parquet, and returns the number of new files.

    Encoded images keep their bytes, and tensors stay tensors. After a kill, the same call continues.

    Args:
        loaded: Result of `load_source`.
        target: Folder or URI.
        rows_per_file: Maximum rows of a file, at least 1.
        on_progress: Called after every file.

    Raises:
        ValueError: If the target holds another data set or cannot be written, or an example cannot be read.
    """
    if rows_per_file < 1:
        raise ValueError(f"rows_per_file must be at least 1; got {rows_per_file}.")
    check_loaded(loaded)
    uri = target if "://" in target else str(Path(target).expanduser().absolute())
    splits = {split: loaded[split] for split in FOLDERS if split in loaded}
    totals = {split: _size(source) for split, source in splits.items()}
    if empty := [split for split, total in totals.items() if not total]:
        raise ValueError(f"the {empty[0]} set must hold at least one example; it is empty.")
    metadata = {split: _metadata(loaded, split) for split in splits}
    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
        parts = _parts(root, totals, rows_per_file)
        _check_target(filesystem, root, {part.path for part in parts})
        # All files are checked before any is written, because the target may hold some files of another data set.
        written = {part for part in parts if _is_written(filesystem, part, metadata[part.split])}
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"the target must be a path that pyarrow.fs can write; got {target!r}: {error}.") from error
    for part in parts:
        if part not in written:
            _write(filesystem, part, splits[part.split], metadata[part.split])
        on_progress(part.split, part.rows.stop, totals[part.split])
    return len(parts) - len(written)


def _size(source: Any) -> int:
    return len(source[1] if isinstance(source, (tuple, list)) else source)


def _parts(root: str, totals: Mapping[str, int], rows_per_file: int) -> list[_Part]:
    parts = []
    for split, total in totals.items():
        count = math.ceil(total / rows_per_file)
        for number in range(count):
            rows = range(number * rows_per_file, min((number + 1) * rows_per_file, total))
            parts.append(_Part(split, f"{root}/{FOLDERS[split][0]}/part-{number:05d}-of-{count:05d}.parquet", rows))
    return parts


def _metadata(loaded: Mapping[str, Any], split: str) -> dict[bytes, bytes]:
    source = loaded[split]
    digest = hashlib.sha256(str(_size(source)).encode())
    if isinstance(source, (tuple, list, BlockSource)):
        labels = source.labels if isinstance(source, BlockSource) else source[1]
        digest.update(labels.cpu().long().numpy().tobytes())
    # Not decoded yet: damaged images are found when they are written.
    first = _table(split, source, range(min(ROWS_PER_GROUP, _size(source))), check=False)
    with pa.ipc.new_stream(sink := pa.BufferOutputStream(), first.schema) as writer:
        writer.write_table(first)
    digest.update(sink.getvalue())
    kept = {key: loaded[key] for key in _KEPT if loaded.get(key) is not None}
    return {
        # Values of NumPy and torch become plain numbers.
        METADATA_KEY: json.dumps(kept, default=lambda value: value.tolist()).encode(),
        _SOURCE_KEY: digest.hexdigest().encode(),
    }


def _check_target(filesystem: fs.FileSystem, root: str, expected: set[str]) -> None:
    """Removes partial files of a killed conversion; refuses files that do not belong to this one."""
    partial = []
    for folder in sorted({name for names in FOLDERS.values() for name in names}):
        selector = fs.FileSelector(f"{root}/{folder}", recursive=True, allow_not_found=True)
        for info in filesystem.get_file_info(selector):
            name = PurePosixPath(info.path).name
            if info.type != fs.FileType.File or info.path in expected:
                continue
            if not _TEMPORARY.fullmatch(name):
                raise ValueError(
                    f"the target must be empty or hold the same data set in the same number of files; {root}/{folder} "
                    f"holds {name}. Choose another target, or the previous number of rows per file."
                )
            partial.append(info.path)
    for path in partial:
        filesystem.delete_file(path)


def _is_written(filesystem: fs.FileSystem, part: _Part, metadata: Mapping[bytes, bytes]) -> bool:
    if filesystem.get_file_info(part.path).type != fs.FileType.File:
        return False
    try:
        footer = pq.read_metadata(part.path, filesystem=filesystem)
    except (OSError, pa.ArrowException):
        return False  # damaged; it is written again
    found = footer.metadata or {}
    if footer.num_rows != len(part.rows) or any(found.get(key) != value for key, value in metadata.items()):
        raise ValueError(f"{part.path} must be of the same data set; it is of another. Choose another target.")
    return True


def _write(filesystem: fs.FileSystem, part: _Part, source: Any, metadata: Mapping[bytes, bytes]) -> None:
    """Writes the whole file under a temporary name, then moves it into place."""
    temporary = f"{part.path}.{uuid.uuid4().hex}.tmp"
    try:
        filesystem.create_dir(str(PurePosixPath(part.path).parent), recursive=True)
        tables = _tables(part, source)
        first = next(tables)
        schema = first.schema.with_metadata(dict(metadata))
        with (
            filesystem.open_output_stream(temporary) as stream,
            # Statistics of the images would put two whole images into each page's header.
            pq.ParquetWriter(stream, schema, write_page_checksum=True, write_statistics=[LABEL_COLUMN]) as writer,
        ):
            writer.write_table(first.cast(schema))
            for table in tables:
                if table.schema != first.schema:
                    raise ValueError(
                        f"all examples must be tensors of one shape and type; the {part.split} set has "
                        f"{first.schema.field(IMAGE_COLUMN).type} and {table.schema.field(IMAGE_COLUMN).type}."
                    )
                writer.write_table(table.cast(schema))
        filesystem.move(temporary, part.path)
    except BaseException as error:
        with suppress(OSError):
            filesystem.delete_file(temporary)
        if isinstance(error, OSError):
            raise ValueError(f"Cannot write {part.path}: {error}. Earlier files are kept.") from error
        raise


def _tables(part: _Part, source: Any) -> Iterator[pa.Table]:
    for start in range(part.rows.start, part.rows.stop, ROWS_PER_GROUP):
        yield _table(part.split, source, range(start, min(start + ROWS_PER_GROUP, part.rows.stop)), check=True)


def _table(split: str, source: Any, rows: range, *, check: bool) -> pa.Table:
    """Returns some examples as a table of images and labels.

    Args:
        split: The split, for errors.
        source: Source of the split.
        rows: Indices of the examples.
        check: Whether encoded images are decoded, so that a damaged image is found now and not in training.
    """
    images: pa.Array
    if isinstance(source, (tuple, list)) and not isinstance(source[0], Tensor):
        raise ValueError(
            f"the {split} set's inputs must be one tensor to be converted; got {type(source[0]).__name__}."
        )
    if isinstance(source, EncodedSource):
        contents = source.contents(list(rows))
        for name, content in contents if check else ():
            source.decoder(content, name, None)
        images, labels = pa.array([content for _, content in contents], pa.binary()), source.labels[list(rows)]
    else:
        if isinstance(source, BlockSource):
            inputs, labels = source.read(list(rows), None), source.labels[list(rows)]
        elif isinstance(source, (tuple, list)):
            inputs, labels = source[0][rows.start : rows.stop], source[1][rows.start : rows.stop]
        else:
            inputs, labels = collate([_example(split, source, index) for index in rows])
        images = _tensors(split, inputs)
    if labels.is_floating_point():
        raise ValueError(f"the {split} labels must be whole numbers, one class each; got {labels.dtype}.")
    if labels.ndim != 1:
        raise ValueError(f"the {split} labels must be one class each, of shape (n,); got {tuple(labels.shape)}.")
    return pa.table({IMAGE_COLUMN: images, LABEL_COLUMN: pa.array(labels.long().tolist(), pa.int64())})


def _example(split: str, source: Any, index: int) -> Any:
    try:
        return source[index]
    except Exception as error:  # user-defined code
        raise ValueError(f"Cannot read example {index} of the {split} set: {type(error).__name__}: {error}.") from error


def _tensors(split: str, inputs: Tensor) -> pa.Array:
    try:
        if inputs.dtype == torch.bool:
            raise TypeError("Arrow has no tensors of this type")
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(inputs.detach().cpu().numpy()))
    except (TypeError, ValueError) as error:  # Arrow's errors are subclasses
        raise ValueError(
            f"the {split} set's examples must be tensors of a number type and of at least one dimension; got "
            f"{inputs.dtype} of shape {tuple(inputs.shape[1:])}: {error}."
        ) from error
