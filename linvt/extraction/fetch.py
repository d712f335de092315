"""From an input's URI to a local file and the sha256 of its bytes."""

import errno
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

_CHUNK_BYTES = 1 << 20
_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


def names_no_file(error: OSError) -> bool:
    """Whether an error says that a path leads to no readable file, so that trying again is in vain."""
    return error.errno in _NO_SUCH_FILE or isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError)


@contextmanager
def local_copy(uri: str, alive: Callable[[], None] = lambda: None) -> Iterator[tuple[Path, str]]:
    """(path, sha256) of the media at `uri`: the file itself if it is local, else a copy that goes when the block ends.

    `alive` is called while bytes arrive. Raises OSError; see `names_no_file`.
    """
    filesystem, path = url_to_fs(uri)
    digest = hashlib.sha256()
    if isinstance(filesystem, LocalFileSystem):
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                alive()
        yield Path(path), digest.hexdigest()
        return
    with tempfile.NamedTemporaryFile(suffix=Path(path).suffix) as copy, filesystem.open(path, "rb") as remote:
        while chunk := remote.read(_CHUNK_BYTES):
            digest.update(chunk)  # pyright: ignore[reportArgumentType]
            copy.write(chunk)  # pyright: ignore[reportArgumentType]
            alive()
        copy.flush()
        yield Path(copy.name), digest.hexdigest()


def content_sha256(uri: str) -> str:
    """The sha256 of the bytes at `uri`; raises what `local_copy` raises."""
    filesystem, path = url_to_fs(uri)
    with filesystem.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
