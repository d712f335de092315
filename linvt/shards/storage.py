"""The files of a cache, on a local disk or on any filesystem that fsspec opens (s3://, gs://, memory://, …).

A file is either complete or absent: local writes go to a temporary name, are flushed to the disk and renamed; remote
objects are uploaded whole from a temporary local file, since closing a half-written upload would publish it. What a
disk or a store refuses to do is raised as StorageError.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from linvt.storage_error import TEMPORARY_FOLDER, StorageError, explained, store_code

TEMPORARY_SUFFIX = ".tmp"

# What s3fs fetches ahead, by default 50 MB, is held in memory up to three times.
_READ_AHEAD_BYTES = 8 << 20
# S3's answers to a conditional put that came too late, and to one that a store does not know.
_TOO_LATE = {"PreconditionFailed", "ConditionalRequestConflict"}
_UNKNOWN = "NotImplemented"


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

    def uri_of(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def size_bytes(self, name: str) -> int | None:
        """The size of a file, or None where there is none."""
        try:
            with self._explained(name, "cannot be looked up", passing=(FileNotFoundError,)):
                return int(self.filesystem.size(self.path(name)))  # pyright: ignore[reportArgumentType]
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes [start, end) of a file, fewer where it is shorter. Raises FileNotFoundError."""
        # By default s3fs reads large objects in parts; of one that is replaced meanwhile, they would make a mixture.
        whole: Any = {"max_concurrency": 1} if self._is_s3 and start is None and end is None else {}
        with self._explained(name, "cannot be read", passing=(FileNotFoundError,)):
            data = self.filesystem.cat_file(self.path(name), start=start, end=end, **whole)
        assert isinstance(data, bytes)
        return data

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file to read here and there. Raises FileNotFoundError."""
        ahead: Any = {} if self.is_local else {"block_size": _READ_AHEAD_BYTES}
        with (
            self._explained(name, "cannot be read", passing=(FileNotFoundError,)),
            self.filesystem.open(self.path(name), "rb", **ahead) as file,
        ):
            yield file  # pyright: ignore[reportReturnType]

    def names(self, folder: str) -> list[str]:
        """The file names inside `folder`, sorted; [] where there is no such folder."""
        try:
            with self._explained(folder, "cannot be listed", passing=(FileNotFoundError,)):
                entries = self.filesystem.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(PurePosixPath(entry).name for entry in entries)

    def remove(self, name: str) -> None:
        """Removes a file; a file that is not there is fine."""
        try:
            with self._explained(name, "cannot be removed", passing=(FileNotFoundError,)):
                self.filesystem.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        if not self.is_local:
            with self._explained(name, "cannot be written"):
                self.filesystem.pipe_file(self.path(name), data)
            return
        with self.open_atomic(name, durable=durable) as file:
            file.write(data)

    @contextmanager
    def open_atomic(self, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """A file to write; it appears under `name`, whole, when the block ends without an exception.

        A local file that is not durable survives the process, but perhaps not the machine.
        """
        # A file that is missing while another is being written is one that the block reads.
        if self.is_local:
            with (
                self._explained(name, "cannot be written", passing=(FileNotFoundError,)),
                _replacing(Path(self.path(name)), durable) as file,
            ):
                yield file
            return
        cannot = f"nothing can be written there on its way to {self.uri_of(name)}"
        with ExitStack() as opened:
            with explained(TEMPORARY_FOLDER, cannot):
                file = opened.enter_context(tempfile.NamedTemporaryFile(suffix=TEMPORARY_SUFFIX))
            with explained(TEMPORARY_FOLDER, cannot, passing=(FileNotFoundError,)):
                yield file
                file.flush()
            with self._explained(name, "cannot be written"):
                self.filesystem.put_file(file.name, self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that is not there yet; returns whether it holds `data` now, by whomever it was written.

        Of several that create one object at the same time one succeeds, on a store that knows conditional puts (see
        `creates_only_once`). Elsewhere, and on a local disk, this is a look and then a write.
        """
        if self._contents(name) is None:
            if self.is_local:
                self.write(name, data)
            else:
                self._put_if(name, data, lambda: self._create(name, data))
        return self._contents(name) == data

    def replace(self, name: str, data: bytes, *, expected: bytes) -> bool:
        """Writes over a file that holds `expected`; returns whether it holds `data` now.

        Of several that replace one object at the same time one succeeds, on S3 and on what knows its conditional puts.
        Elsewhere this is a look and then a write.
        """
        # Asked for before the look, so that whatever is put after the look makes this put come too late.
        etag = self._etag(name) if self._is_s3 else None
        if self._contents(name) == expected:
            if not self._is_s3:
                self.write(name, data)
            elif etag is not None:
                self._put_if(name, data, lambda: self._put_over(name, data, etag))
        return self._contents(name) == data

    def creates_only_once(self, name: str) -> bool:
        """Whether the store refuses to create the file `name`, which is there, again. Some overwrite without a word."""
        try:
            with self._explained(name, "cannot be written"):
                self._create(name, self.read(name))
        except StorageError as error:
            if not _is_too_late(error) and store_code(error) != _UNKNOWN:
                raise
            return _is_too_late(error)
        return False

    def _put_if(self, name: str, data: bytes, put: Callable[[], Any]) -> None:
        """A conditional put: nothing is written if it comes too late, and a store that knows none gets a plain one."""
        try:
            with self._explained(name, "cannot be written"):
                put()
        except StorageError as error:
            if store_code(error) == _UNKNOWN:
                self.write(name, data)
            elif not _is_too_late(error):
                raise

    def _create(self, name: str, data: bytes) -> None:
        self.filesystem.pipe_file(self.path(name), data, mode="create")

    def _put_over(self, name: str, data: bytes, etag: str) -> None:
        s3: Any = self.filesystem
        bucket, key, _ = s3.split_path(self.path(name))
        s3.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=etag)

    def _etag(self, name: str) -> str | None:
        """Of an object on S3; None where there is none."""
        try:
            with self._explained(name, "cannot be looked up", passing=(FileNotFoundError,)):
                return self.filesystem.info(self.path(name))["ETag"]
        except FileNotFoundError:
            return None

    def _contents(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    @property
    def _is_s3(self) -> bool:
        return hasattr(self.filesystem, "call_s3")

    def _explained(
        self, name: str, trouble: str, *, passing: tuple[type[OSError], ...] = ()
    ) -> AbstractContextManager[None]:
        return explained(self.uri_of(name), trouble, passing=passing)


def open_storage(uri: str) -> Storage:
    """The folder at `uri`: a local path or an fsspec URI. It need not exist."""
    filesystem, root = open_filesystem(uri)
    return Storage(filesystem, root.rstrip("/"))


def open_filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URI, and the path on it. Its listings are never remembered: other processes write, too."""
    return url_to_fs(os.fspath(uri), use_listings_cache=False)


def _is_too_late(error: StorageError) -> bool:
    return isinstance(error.__cause__, FileExistsError) or store_code(error) in _TOO_LATE


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
