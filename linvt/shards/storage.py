"""The files of a cache, on a local disk or on any filesystem that fsspec opens (s3://, gs://, memory://, …).

A file is either complete or absent: local writes go to a temporary name, are flushed to the disk and renamed; remote
objects are uploaded whole from a temporary local file, since closing a half-written upload would publish it.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder on some filesystem; names are POSIX paths relative to it."""

    filesystem: AbstractFileSystem
    root: str
    """The folder's path as the filesystem writes it: no protocol, no slash at the end."""

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def uri(self) -> str:
        return self.root if self.is_local else str(self.filesystem.unstrip_protocol(self.root))

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def size_bytes(self, name: str) -> int | None:
        """The size of a file, or None where there is none."""
        try:
            return int(self.filesystem.size(self.path(name)))  # pyright: ignore[reportArgumentType]
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes [start, end) of a file, fewer where it is shorter. Raises FileNotFoundError."""
        data = self.filesystem.cat_file(self.path(name), start=start, end=end)
        assert isinstance(data, bytes)
        return data

    def names(self, folder: str) -> list[str]:
        """The file names inside `folder`, sorted; [] where there is no such folder."""
        try:
            entries = self.filesystem.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(PurePosixPath(entry).name for entry in entries)

    def remove(self, name: str) -> None:
        """Removes a file; a file that is not there is fine."""
        try:
            self.filesystem.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        with self.open_atomic(name, durable=durable) as file:
            file.write(data)

    @contextmanager
    def open_atomic(self, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """A file to write; it appears under `name`, whole, when the block ends without an exception.

        A local file that is not durable survives the process, but perhaps not the machine.
        """
        if self.is_local:
            with _replacing(Path(self.path(name)), durable) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(suffix=TEMPORARY_SUFFIX) as file:
            yield file
            file.flush()
            self.filesystem.put_file(file.name, self.path(name))


def open_storage(uri: str) -> Storage:
    """The folder at `uri`: a local path or an fsspec URI. It need not exist."""
    filesystem, root = url_to_fs(os.fspath(uri))
    return Storage(filesystem, root.rstrip("/"))


@contextmanager
def _replacing(path: Path, durable: bool) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if not durable:
        return
    # The rename itself is on the disk only once its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
