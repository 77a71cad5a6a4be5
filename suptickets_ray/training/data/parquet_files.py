"""Reads chosen rows from a folder of Parquet files on any path that pyarrow.fs supports."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

IMAGE_COLUMN, LABEL_COLUMN = "image", "label"
_SHARD_NAME = re.compile(r"part-\d+-of-(\d+)\.parquet$")
_OPENING_THREADS = 16
"""Threads that read footers or labels: over a network, they mostly wait."""
_MAX_OPEN_FILES = 128
"""Per process; the usual limit of a system is about 1,024."""
_ROWS_PER_BYTE = 10
"""Maximum, because run-length coding lets a small file declare billions of equal labels. Images need more bytes."""
_DAMAGE = (OSError, ValueError, pa.ArrowException)
"""What reading a damaged file raises."""
_PER_PROCESS = ("_filesystem", "_open_files", "_lock", "_last_read")


class ParquetFiles:
    """The rows of the files of one folder, in the order of file names. Picklable; each process opens the files."""

    _filesystem: fs.FileSystem | None

    def __init__(self, uri: str, folder: str) -> None:
        """Reads the footers.

        Args:
            uri: Absolute path or URI of the data set.
            folder: Folder of the split below it.

        Raises:
            ValueError: If there are no files, one is damaged, or they do not have the columns.
        """
        self.uri, self.folder = uri, folder
        self._reset_process_state()
        self._filesystem, root = fs.FileSystem.from_uri(uri)
        self.paths = self._listed(f"{root}/{folder}")
        self._check_parts()
        with ThreadPoolExecutor(min(_OPENING_THREADS, len(self.paths))) as pool:
            footers = list(pool.map(self._footer, self.paths))
        self.schema: pa.Schema = footers[0][0]
        for path, (schema, _) in zip(self.paths, footers, strict=True):
            self._check_columns(path, schema)
        sizes = [size for _, group_sizes in footers for size in group_sizes]
        self._group_starts = np.cumsum([0, *sizes])
        """First row of each row group over all files, followed by the number of rows."""
        self._file_groups = np.cumsum([0, *(len(group_sizes) for _, group_sizes in footers)])
        """First row group of each file, followed by the number of row groups."""
        if not len(self):
            raise ValueError(f"{uri}/{folder} must hold at least one row; its files are empty.")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in _PER_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset_process_state()

    def __len__(self) -> int:
        return int(self._group_starts[-1])

    def column(self, name: str) -> pa.ChunkedArray:
        """Returns a whole column of all files. Raises ValueError if a file is damaged."""
        with self._lock:
            self._connect()
        with ThreadPoolExecutor(min(_OPENING_THREADS, len(self.paths))) as pool:
            columns = list(pool.map(lambda path: self._whole_column(path, name), self.paths))
        for path, column, (first, last) in zip(self.paths, columns, pairwise(self._file_groups), strict=True):
            if len(column) != (expected := self._group_starts[last] - self._group_starts[first]):
                raise _damaged(path, f"it has {len(column)} rows and not {expected}")
        return pa.chunked_array(list(itertools.chain(*(column.chunks for column in columns))))

    def rows(self, name: str, indices: Sequence[int]) -> pa.ChunkedArray:
        """Returns a column at ascending positions; only the row groups that hold them are read."""
        wanted = np.asarray(indices)
        groups = np.searchsorted(self._group_starts, wanted, side="right") - 1
        files = np.searchsorted(self._file_groups, groups, side="right") - 1
        pieces = []
        for file in np.unique(files):
            rows, row_groups = wanted[files == file], groups[files == file]
            read, read_index = np.unique(row_groups, return_inverse=True)
            # Start of each group among the groups that are read, which need not be adjacent.
            starts = np.cumsum([0, *(self._group_starts[read + 1] - self._group_starts[read])])
            offsets = starts[read_index] + rows - self._group_starts[row_groups]
            column = self._read(self.paths[file], (read - self._file_groups[file]).tolist(), name)
            if len(column) != starts[-1]:
                raise _damaged(self.paths[file], f"it has {len(column)} rows and not {starts[-1]}")
            pieces.append(column.take(pa.array(offsets)))
        return pa.chunked_array(list(itertools.chain(*(piece.chunks for piece in pieces))))

    def _reset_process_state(self) -> None:
        self._filesystem = None
        self._open_files: dict[str, pq.ParquetFile] = {}
        self._last_read: tuple[Any, Any] = (None, None)
        # One thread at a time reads a file. Decoding takes more time, and happens outside the lock.
        self._lock = threading.Lock()

    def _connect(self) -> None:
        if self._filesystem is None:
            self._filesystem, _ = fs.FileSystem.from_uri(self.uri)

    def _listed(self, place: str) -> list[str]:
        """Returns the sorted paths of the files; names with a leading dot or underscore are no data in Parquet."""
        assert self._filesystem is not None
        infos = self._filesystem.get_file_info(fs.FileSelector(place, recursive=True))
        paths = [info.path for info in infos if info.type == fs.FileType.File and info.path.endswith(".parquet")]
        depth = len(PurePosixPath(place).parts)
        paths = [path for path in paths if not any(part[0] in "._" for part in PurePosixPath(path).parts[depth:])]
        if not paths:
            raise ValueError(f"{self.uri}/{self.folder} must hold .parquet files; there is none.")
        return sorted(paths)

    def _check_parts(self) -> None:
        totals = {int(match[1]) for path in self.paths if (match := _SHARD_NAME.search(path))}
        if totals and totals != {len(self.paths)}:
            raise ValueError(
                f"{self.uri}/{self.folder} must hold all {max(totals)} parts of one data set and no other file; there "
                f"are {len(self.paths)} files. Run the same suptickets data convert again to continue."
            )

    def _check_columns(self, path: str, schema: pa.Schema) -> None:
        for name in (IMAGE_COLUMN, LABEL_COLUMN):
            if name not in schema.names:
                raise ValueError(
                    f"{path} must have the columns image and label; {name!r} is missing among {schema.names}."
                )
            if schema.field(name).type != self.schema.field(name).type:
                raise ValueError(
                    f"{path} must have columns of the same types as {self.paths[0]}; {name!r} is of type "
                    f"{schema.field(name).type} and not {self.schema.field(name).type}."
                )

    def _opened(self, path: str) -> pq.ParquetFile:
        try:
            # Verified if the writer stored checksums, as `convert` does.
            return pq.ParquetFile(path, filesystem=self._filesystem, page_checksum_verification=True, pre_buffer=True)
        except _DAMAGE as error:
            raise _damaged(path, error) from error

    def _footer(self, path: str) -> tuple[pa.Schema, list[int]]:
        with self._opened(path) as file:
            try:
                schema, footer = file.schema_arrow, file.metadata
                sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            except _DAMAGE as error:
                raise _damaged(path, error) from error
        if footer.num_rows > _ROWS_PER_BYTE * (num_bytes := self._num_bytes(path)):
            raise _damaged(path, f"it declares {footer.num_rows:,} rows in {num_bytes:,} bytes")
        if sum(sizes) != footer.num_rows:
            raise _damaged(path, f"its row groups have {sum(sizes)} rows and not {footer.num_rows}")
        return schema, sizes

    def _num_bytes(self, path: str) -> int:
        assert self._filesystem is not None
        return int(self._filesystem.get_file_info(path).size)

    def _whole_column(self, path: str, name: str) -> pa.ChunkedArray:
        with self._opened(path) as file:
            try:
                return file.read([name]).column(name)
            except _DAMAGE as error:
                raise _damaged(path, error) from error

    def _read(self, path: str, groups: list[int], name: str) -> pa.ChunkedArray:
        """Returns a column of some row groups; the last result is kept for the many small reads of a large group."""
        key = (path, groups, name)
        with self._lock:
            if self._last_read[0] != key:
                self._connect()
                if path not in self._open_files:
                    if len(self._open_files) == _MAX_OPEN_FILES:
                        self._open_files.pop(next(iter(self._open_files))).close()
                    self._open_files[path] = self._opened(path)
                try:
                    table = self._open_files[path].read_row_groups(groups, [name])
                except _DAMAGE as error:
                    raise _damaged(path, error) from error
                self._last_read = (key, table.column(name))
            return self._last_read[1]


def _damaged(path: str, reason: object) -> ValueError:
    return ValueError(f"{path} must be a whole Parquet file; it is damaged: {reason}.")
