"""From an input's URI to a local file and the sha256 of its bytes."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

_CHUNK_BYTES = 1 << 20
_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


def names_no_file(error: OSError) -> bool:
    """Whether an error says that a path leads to no readable file, so that trying again is in vain."""
    known = FileNotFoundError | IsADirectoryError | PermissionError | NotARegularFileError
    return error.errno in _NO_SUCH_FILE or isinstance(error, known)


def error_class(error: OSError) -> str:
    """What went wrong in a word, also where Python has no class of its own for it."""
    if error.errno == errno.ELOOP:
        return "LinkLoopError"
    return "NameTooLongError" if error.errno == errno.ENAMETOOLONG else type(error).__name__


class NotARegularFileError(OSError):
    """A pipe, a device or a socket: reading it could block or go on for ever, and it cannot be read twice."""


def filesystem_of(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of `uri`, and the path on it.

    A path of this machine is taken as it is. fsspec would take "::" in it for a chain of filesystems, and open what
    stands before.
    """
    path = uri.removeprefix("file://")
    return (LocalFileSystem(), path.rstrip("/") or "/") if path.startswith("/") else url_to_fs(uri)


@contextmanager
def local_copy(uri: str, alive: Callable[[], None] = lambda: None) -> Iterator[tuple[Path, str]]:
    """(path, sha256) of the media at `uri`: the file itself if it is local, else a copy that goes when the block ends.

    `alive` is called while bytes arrive. Raises OSError; see `names_no_file`.
    """
    filesystem, path = filesystem_of(uri)
    digest = hashlib.sha256()
    if isinstance(filesystem, LocalFileSystem):
        with _open_local(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                alive()
        yield Path(path), digest.hexdigest()
        return
    with tempfile.NamedTemporaryFile(suffix=Path(path).suffix) as copy, filesystem.open(path, "rb") as remote:
        while chunk := remote.read(_CHUNK_BYTES):
            digest.update(chunk)  # pyright: ignore[reportArgumentType]
            copy.write(chunk)  # pyright: ignore[reportArgumentType, reportCallIssue]
            alive()
        copy.flush()
        yield Path(copy.name), digest.hexdigest()


def content_sha256(uri: str) -> str:
    """The sha256 of the bytes at `uri`; raises what `local_copy` raises."""
    filesystem, path = filesystem_of(uri)
    with _open_local(path) if isinstance(filesystem, LocalFileSystem) else filesystem.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def _open_local(path: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise FileNotFoundError(errno.ENOENT, f"no file can have this name ({error})", path) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # to open a folder is an error already
        raise NotARegularFileError(errno.EINVAL, "a pipe, device or socket; expected a regular file", path)
    return open(path, "rb")
