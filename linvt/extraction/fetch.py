"""From an input's URI to a local file and the sha256 of its bytes."""

import errno
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from linvt.shards.storage import open_filesystem
from linvt.storage_error import TEMPORARY_FOLDER, StorageError, explained

_CHUNK_BYTES = 1 << 20
# What s3fs fetches ahead, by default 50 MB, is held in memory up to three times, and decoding may have little.
_READ_AHEAD_BYTES = 8 << 20
_SECONDS_BETWEEN_SIGNS_OF_LIFE = 1.0
_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


def names_no_file(error: OSError) -> bool:
    """Whether an error says that a path leads to no readable file, so that trying again is in vain.

    On an object store that is a missing key alone. A missing bucket, and permission denied, are the store's
    (StorageError): they would put every input of a run into quarantine.
    """
    if isinstance(error, StorageError):
        return False
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
    return (LocalFileSystem(), path.rstrip("/") or "/") if path.startswith("/") else open_filesystem(uri)


@contextmanager
def local_copy(uri: str, alive: Callable[[], None] = lambda: None) -> Iterator[tuple[Path, str]]:
    """(path, sha256) of the media at `uri`: the file itself if it is local, else a copy that goes when the block ends.

    `alive` is called while bytes arrive, and while a store keeps us waiting, which is no fault of the media's. Raises
    OSError; see `names_no_file`.
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
    with ExitStack() as opened:
        with explained(TEMPORARY_FOLDER, f"no copy of {uri} can be written"):
            copy = opened.enter_context(tempfile.NamedTemporaryFile(suffix=Path(path).suffix))
        with _signs_of_life(alive):
            for chunk in _chunks(filesystem, path, uri):
                digest.update(chunk)
                with explained(TEMPORARY_FOLDER, f"no copy of {uri} can be written"):
                    copy.write(chunk)
            with explained(TEMPORARY_FOLDER, f"no copy of {uri} can be written"):
                copy.flush()
        yield Path(copy.name), digest.hexdigest()


def content_sha256(uri: str) -> str:
    """The sha256 of the bytes at `uri`; raises what `local_copy` raises."""
    filesystem, path = filesystem_of(uri)
    digest = hashlib.sha256()
    if isinstance(filesystem, LocalFileSystem):
        with _open_local(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    for chunk in _chunks(filesystem, path, uri):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(filesystem: AbstractFileSystem, path: str, uri: str) -> Iterator[bytes]:
    """The bytes at `uri`, which is not local, all of them: StorageError if fewer came than were announced."""
    with explained(uri, "cannot be read", passing=(FileNotFoundError, IsADirectoryError)):
        with filesystem.open(path, "rb", block_size=_READ_AHEAD_BYTES) as remote:
            size_bytes, announced_bytes = 0, getattr(remote, "size", None)
            while chunk := remote.read(_CHUNK_BYTES):
                assert isinstance(chunk, bytes)
                size_bytes += len(chunk)
                yield chunk
        if announced_bytes is not None and size_bytes != announced_bytes:
            raise OSError(f"{size_bytes} bytes came, {announced_bytes} were announced")


@contextmanager
def _signs_of_life(alive: Callable[[], None]) -> Iterator[None]:
    """Calls `alive` during the block. A store's client gives up by itself after its own retries and time limits."""
    finished = threading.Event()

    def call() -> None:
        while not finished.wait(_SECONDS_BETWEEN_SIGNS_OF_LIFE):
            alive()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _open_local(path: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise FileNotFoundError(errno.ENOENT, f"no file can have this name ({error})", path) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # to open a folder is an error already
        raise NotARegularFileError(errno.EINVAL, "a pipe, device or socket; expected a regular file", path)
    return open(path, "rb")
