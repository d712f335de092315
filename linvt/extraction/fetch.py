"""From an input's URI to a local file and the sha256 of its bytes."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

_CHUNK_BYTES = 1 << 20


@contextmanager
def local_copy(uri: str) -> Iterator[tuple[Path, str]]:
    """(path, sha256) of the media at `uri`: the file itself if it is local, else a copy that goes when the block ends.

    Raises FileNotFoundError, IsADirectoryError or PermissionError for a URI that names no readable file.
    """
    filesystem, path = url_to_fs(uri)
    if isinstance(filesystem, LocalFileSystem):
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        yield Path(path), sha256
        return
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(suffix=Path(path).suffix) as copy, filesystem.open(path, "rb") as remote:
        while chunk := remote.read(_CHUNK_BYTES):
            digest.update(chunk)  # pyright: ignore[reportArgumentType]
            copy.write(chunk)  # pyright: ignore[reportArgumentType]
        copy.flush()
        yield Path(copy.name), digest.hexdigest()


def content_sha256(uri: str) -> str:
    """The sha256 of the bytes at `uri`; raises what `local_copy` raises."""
    filesystem, path = url_to_fs(uri)
    with filesystem.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
