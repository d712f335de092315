"""From an input's URI to a local file, or folder of frames, and the sha256 of its bytes."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from linvt.extraction.frame_folders import split_frame_folder_uri
from linvt.shards.storage import open_filesystem
from linvt.storage_error import TEMPORARY_FOLDER, StorageError, explained
from linvt.video import MediaError, ordered_frames

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
    known = FileNotFoundError | IsADirectoryError | PermissionError | NotARegularFileError | NotFramesError
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


class NotFramesError(OSError):
    """A folder whose files are not the frames of one video."""


@contextmanager
def local_copy(uri: str, alive: Callable[[], None] = lambda: None) -> Iterator[tuple[Path, str]]:
    """(path, sha256) of the media at `uri`: the file itself if it is local, else a copy that goes when the block ends.

    Of a folder of frames (`frame_folder_uri`) that is a folder, and the sha256 of its rate and its frames' names and
    contents.

    `alive` is called while bytes arrive, and while a store keeps us waiting, which is no fault of the media's. Raises
    OSError; see `names_no_file`.
    """
    if split_frame_folder_uri(uri):
        with _local_frames(uri, alive) as found:
            yield found
        return
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
    if frames := split_frame_folder_uri(uri):
        folder, fps = frames
        return _digest_of_frames(fps, ((name, content_sha256(f"{folder}/{name}")) for name in _frame_names(folder)))
    filesystem, path = filesystem_of(uri)
    digest = hashlib.sha256()
    if isinstance(filesystem, LocalFileSystem):
        with _open_local(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    for chunk in _chunks(filesystem, path, uri):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _local_frames(uri: str, alive: Callable[[], None]) -> Iterator[tuple[Path, str]]:
    folder_and_fps = split_frame_folder_uri(uri)
    assert folder_and_fps is not None
    folder, fps = folder_and_fps
    filesystem, path = filesystem_of(folder)
    is_local = isinstance(filesystem, LocalFileSystem)
    with ExitStack() as opened:
        place = Path(path)
        if not is_local:
            with explained(TEMPORARY_FOLDER, f"no copy of {uri} can be written"):
                place = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        hashes: list[tuple[str, str]] = []
        for name in _frame_names(folder):
            with local_copy(f"{folder}/{name}", alive) as (file, sha256):
                hashes.append((name, sha256))
                if not is_local:
                    with explained(TEMPORARY_FOLDER, f"no copy of {uri} can be written"):
                        shutil.copyfile(file, place / name)
        yield place, _digest_of_frames(fps, hashes)


def _frame_names(folder: str) -> list[str]:
    filesystem, path = filesystem_of(folder)
    with explained(folder, "cannot be listed", passing=(FileNotFoundError, NotADirectoryError, PermissionError)):
        names = [str(name).rstrip("/").rpartition("/")[2] for name in filesystem.ls(path, detail=False)]
    try:
        return ordered_frames(names)
    except MediaError as error:
        raise NotFramesError(errno.EINVAL, error.message, folder) from error


def _digest_of_frames(fps: float, frames: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256(f"{fps:g}\n".encode())
    for name, sha256 in frames:
        digest.update(f"{sha256} {name}\n".encode("utf-8", "surrogateescape"))
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
