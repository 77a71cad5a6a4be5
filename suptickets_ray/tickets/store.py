"""The files of a run on any path that pyarrow.fs supports. Every write is atomic."""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pyarrow import fs

_PATIENCE_SECONDS = 90.0
"""How long requests to an unreachable storage are retried before the run fails."""
_CHECK_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 8.0
_PASSING = ("curlcode", "network_connection", "service_unavailable", "slow_down", "internal", "timeout", "timed out")
"""Parts of the error texts of transient object store failures."""

_WITHOUT_FOLDERS = ("s3",)
"""File systems without folders: creating one there costs three requests and has no effect."""

Result = TypeVar("Result")


def child(root: str, *parts: str) -> str:
    """Returns a path below a folder or URI. The query of a URI stays at its end."""
    path, mark, query = root.partition("?") if "://" in root else (root, "", "")
    return "/".join([path.rstrip("/"), *parts]) + mark + query


def split_path(path: str) -> tuple[str, str]:
    """Returns the folder and the name of a file, for `RunStore`. The query of a URI stays with the folder.

    Args:
        path: Local path, which is made absolute, or a URI such as s3://bucket/path/file?region=us-east-1.
    """
    if "://" not in path:
        absolute = Path(path).expanduser().absolute()
        return str(absolute.parent), absolute.name
    head, mark, query = path.partition("?")
    folder, _, name = head.rpartition("/")
    return folder + mark + query, name


def patiently(action: Callable[[], Result], seconds: float = _PATIENCE_SECONDS) -> Result:
    """Returns the result of `action`. Transient failures of an object store are retried for `seconds`.

    pyarrow's own retries of S3 are limited in number, not in time, and a URI cannot set them.
    """
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except OSError as error:
            passing = any(word in str(error).lower() for word in _PASSING)
            if not passing or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


class RunStore:
    """Files of one run by their path below its folder. Transient failures of an object store are retried."""

    def __init__(self, root: str) -> None:
        """Opens a folder, which need not exist yet.

        Args:
            root: Absolute local path, or a URI such as s3://bucket/path.

        Raises:
            ValueError: If the path is relative or its scheme unknown.
        """
        try:
            self._filesystem, self._root = fs.FileSystem.from_uri(root)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise ValueError(
                f"storage must be an absolute path or a URI that pyarrow.fs knows; got {root!r}: {error}."
            ) from error
        if isinstance(self._filesystem, fs.LocalFileSystem):
            _check_path(self._root)

    def check(self, *, writes: bool, path: str | None = None, seconds: float = _CHECK_SECONDS) -> None:
        """Checks that an object store answers, or that a folder can be made and written.

        Args:
            writes: Whether it must also be writable.
            path: The file to ask an object store for; a name that does not exist if unset.
            seconds: How long to wait for an answer.

        Raises:
            ValueError: If it does not. The message names the settings to check.
        """
        if isinstance(self._filesystem, fs.LocalFileSystem):
            if writes:
                _check_writable(Path(self._root))
            return
        errors: list[Exception] = []

        def probe() -> None:
            try:
                own = self._absolute(f".probe-{uuid.uuid4().hex}")
                self._type_of(self._absolute(path) if path else own)
                if writes:
                    with self._filesystem.open_output_stream(own) as stream:
                        stream.write(b"")
                    self._filesystem.delete_file(own)
            except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
                errors.append(error)

        thread = threading.Thread(target=probe, name="storage-probe", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive() or errors:
            reason = " ".join(str(errors[0]).split()) if errors else f"no answer within {seconds:g} s"
            raise ValueError(
                f"storage must be an object store that can be {'written' if writes else 'read'}; got: {reason}. Check "
                "the address, the bucket and the credentials (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "?region= and &endpoint_override=)."
            )

    def exists(self, path: str) -> bool:
        """Returns whether there is a file of this name."""
        return bool(self._patiently(lambda: self._type_of(self._absolute(path))) == fs.FileType.File)

    def read(self, path: str) -> bytes:
        """Returns the content of a file. Raises FileNotFoundError if there is none."""
        return self._patiently(lambda: self._read(self._absolute(path)))

    def write(self, path: str, content: bytes) -> None:
        """Writes a file under a temporary name and then renames it, so that a kill leaves the old or the new file."""
        self._patiently(lambda: self._write(self._absolute(path), content))

    def _write(self, target: str, content: bytes) -> None:
        if self._filesystem.type_name not in _WITHOUT_FOLDERS:
            self._filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        try:
            with self._filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
            self._filesystem.move(temporary, target)
        except BaseException:
            with suppress(OSError):  # unreachable storage; the next start removes the file
                if self._type_of(temporary) == fs.FileType.File:
                    self._filesystem.delete_file(temporary)
            raise

    def _read(self, path: str) -> bytes:
        with self._filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    def _type_of(self, path: str) -> Any:
        return self._filesystem.get_file_info(path).type

    def delete(self, path: str) -> None:
        """Removes a file. A missing file is no error."""
        with suppress(FileNotFoundError):
            self._patiently(lambda: self._filesystem.delete_file(self._absolute(path)))

    def remove_temporaries(self) -> None:
        """Removes the partial files of killed processes. No other process may be writing."""
        selector = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        for info in self._patiently(lambda: self._filesystem.get_file_info(selector)):
            if info.type == fs.FileType.File and info.path.endswith(".tmp"):
                with suppress(FileNotFoundError):  # the lock's file was renamed meanwhile
                    self._filesystem.delete_file(info.path)

    def remove_folder(self, folder: str) -> None:
        """Removes a folder and its content. A missing folder is no error."""
        path = self._absolute(folder)
        if self._patiently(lambda: self._type_of(path)) == fs.FileType.Directory:
            self._patiently(lambda: self._filesystem.delete_dir(path))

    def list(self, folder: str) -> list[str]:
        """Returns the paths of all whole files below a folder, sorted, relative to the run's folder."""
        selector = fs.FileSelector(self._absolute(folder), recursive=True, allow_not_found=True)
        infos = self._patiently(lambda: self._filesystem.get_file_info(selector))
        found = [info.path for info in infos if info.type == fs.FileType.File]
        relative = [str(PurePosixPath(path).relative_to(self._root)) for path in found]
        return sorted(path for path in relative if not path.endswith(".tmp"))

    def _patiently(self, action: Callable[[], Result]) -> Result:
        """Returns the result of `action`, with retries for an object store. A folder's errors are not transient."""
        return action() if isinstance(self._filesystem, fs.LocalFileSystem) else patiently(action)

    @property
    def location(self) -> tuple[fs.FileSystem, str]:
        """The file system and the path of the folder in it, for libraries that need both."""
        return self._filesystem, self._root

    def _absolute(self, path: str) -> str:
        return str(PurePosixPath(self._root) / path)


def _check_path(path: str) -> None:
    """Raises ValueError if no file of this path can exist or be reached."""
    try:
        Path(path).stat()
    except (OSError, ValueError) as error:  # a ValueError for a NUL character
        if getattr(error, "errno", errno.EACCES) in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES):
            raise ValueError(f"storage must be a path that can exist; got {path!r}: {error}.") from error


def _check_writable(folder: Path) -> None:
    """Raises ValueError if a folder cannot be made or written. Makes nothing."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "which this user cannot write" if existing.is_dir() else "a file"
        raise ValueError(f"storage must be a folder that can be written; got {str(existing)!r}, {reason}.")
