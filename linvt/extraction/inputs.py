"""Which media an extraction works on, and under which ids.

A video id is what annotations call the file: its POSIX path relative to the input's root, extension kept. The root is
the folder that was named, a glob's part before the first wildcard, or --media-root / the folder of a list file.
"""

import glob
import itertools
import json
import os
import re
import stat as stat_kinds
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from linvt.extraction.fetch import filesystem_of, names_no_file
from linvt.extraction.frame_folders import frame_folder_info, frame_folder_uri
from linvt.storage_error import explained

pc: Any = pyarrow.compute  # its functions are made when it is imported, which no type checker sees

MEDIA_EXTENSIONS = frozenset(
    {
        *{".jpeg", ".jpg", ".png", ".webp"},
        *{".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"},
        *{".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"},
    }
)
_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFile:
    """One input. Size and modification are what the listing saw; both None for a file that is not there."""

    video_id: str
    uri: str
    size_bytes: int | None
    modified: str | None
    """Modification time, or an object store's ETag: equal means unchanged, different means look closer."""


MEDIA_SCHEMA = pa.schema(
    [
        # 64-bit offsets: the names of 30 million files are more than 2 GB.
        ("video_id", pa.large_string()),
        ("uri", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("modified", pa.string()),
    ]
)
_LISTED_AT_ONCE = 50_000


class Listing(Sequence[MediaFile]):
    """Inputs sorted by video id. There may be millions, so they are columns (`table`); single ones come on demand."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, found: Iterable[MediaFile]) -> "Listing":
        """Sorted by id, then uri. The ids may repeat."""
        batches, rest = [], iter(found)
        while some := list(itertools.islice(rest, _LISTED_AT_ONCE)):
            columns = [[getattr(media, name) for media in some] for name in MEDIA_SCHEMA.names]
            arrays = [pa.array(column, kind) for column, kind in zip(columns, MEDIA_SCHEMA.types)]
            batches.append(pa.record_batch(arrays, schema=MEDIA_SCHEMA))
        table = pa.Table.from_batches(batches, schema=MEDIA_SCHEMA)
        return cls(table.sort_by([("video_id", "ascending"), ("uri", "ascending")]))

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> MediaFile: ...
    @overload
    def __getitem__(self, index: slice) -> "Listing": ...
    def __getitem__(self, index: int | slice) -> "MediaFile | Listing":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "inputs are taken in their order"
            return Listing(self.table.slice(start, max(0, stop - start)))
        return MediaFile(**self.table.slice(range(len(self))[index], 1).to_pylist()[0])

    def __iter__(self) -> Iterator[MediaFile]:
        for batch in self.table.to_batches(max_chunksize=_LISTED_AT_ONCE):
            yield from (MediaFile(**row) for row in batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listing) and self.table.equals(other.table)


def list_inputs(videos: str, media_root: str | None = None, frames_fps: float = 2.0) -> Listing:
    """Every media file that `videos` names, sorted by video id, each id once.

    Folders and globs give the files with a known media extension, hidden files (.name) left out. A list or annotation
    file gives every path it names, whatever its extension, also those that do not exist: they end as quarantined rows.
    A folder of numbered JPEG or PNG files that a list names is a video of `frames_fps` frames a second.
    Raises ValueError where nothing is found, or where two different files would get one video id, and StorageError.
    """
    with explained(f"--videos {videos}", "cannot be listed"):
        return _unique(videos, _found(videos, media_root, frames_fps))


def _found(videos: str, media_root: str | None, frames_fps: float) -> Iterable[MediaFile]:
    filesystem, path = _open(videos)
    suffix = PurePosixPath(path).suffix.lower()
    if filesystem.isdir(path):
        return _below(filesystem, path, _walk(filesystem, path))
    if filesystem.isfile(path):
        if suffix in (".txt", ".jsonl"):
            return _listed(filesystem, path, media_root, frames_fps)
        return [_media_file(filesystem, path, PurePosixPath(path).name, _info(filesystem, path))]
    if _WILDCARDS & set(path):
        return _globbed(filesystem, path)
    raise ValueError(f"--videos {videos}: no such file or folder; expected a folder, a glob, a .txt or a .jsonl")


def _open(uri: str) -> tuple[AbstractFileSystem, str]:
    filesystem, path = filesystem_of(uri)
    return filesystem, path.rstrip("/") or path


def _walk(filesystem: AbstractFileSystem, root: str) -> dict[str, Any]:
    """From the path of every file below `root` to its info."""
    if not isinstance(filesystem, LocalFileSystem):
        return filesystem.find(root, detail=True)  # pyright: ignore[reportReturnType]
    return {path: _info(filesystem, path) for path in _local_files(root, parents=())}


def _info(filesystem: AbstractFileSystem, path: str) -> dict[str, Any]:
    if not isinstance(filesystem, LocalFileSystem):
        with explained(filesystem.unstrip_protocol(path), "cannot be looked up", passing=(FileNotFoundError,)):
            return filesystem.info(path)
    # fsspec gives a link's own modification time, which stays when the file behind it changes.
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:  # A ValueError where no file can have such a name.
        if isinstance(error, OSError) and not names_no_file(error):
            raise
        return {"type": "file", "size": None, "mtime": None}
    kind = "directory" if stat_kinds.S_ISDIR(stat.st_mode) else "file"
    return {"type": kind, "size": stat.st_size, "mtime": stat.st_mtime_ns}


def _local_files(folder: str, parents: tuple[str, ...]) -> Iterator[str]:
    """Links are followed, since data sets are often links to a disk elsewhere; but not into a folder's own parents."""
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in os.scandir(folder):
        if _leads_to(entry.is_dir):
            yield from _local_files(entry.path, (*parents, real))
        elif _leads_to(entry.is_file) or entry.is_symlink():
            # A link to nothing is an input too: it ends as a quarantined row, not unseen.
            yield entry.path


def _leads_to(is_kind: Callable[[], bool]) -> bool:
    try:
        return is_kind()
    except OSError:  # A link to itself.
        return False


def _globbed(filesystem: AbstractFileSystem, pattern: str) -> Iterator[MediaFile]:
    parts = PurePosixPath(pattern).parts
    first_wildcard = next(i for i, part in enumerate(parts) if _WILDCARDS & set(part))
    root = str(PurePosixPath(*parts[:first_wildcard]))
    if not isinstance(filesystem, LocalFileSystem):
        matches: dict[str, Any] = filesystem.glob(pattern, detail=True)  # pyright: ignore[reportAssignmentType]
    elif "**" in pattern:
        matches_pattern = re.compile(glob_translate(pattern)).match
        matches = {path: info for path, info in _walk(filesystem, root).items() if matches_pattern(path)}
    else:
        matches = {path: _info(filesystem, path) for path in glob.glob(pattern) if not os.path.isdir(path)}
    return _below(filesystem, root, matches)


def _below(filesystem: AbstractFileSystem, root: str, files: dict[str, Any]) -> Iterator[MediaFile]:
    for path, info in files.items():
        relative = PurePosixPath(path).relative_to(root)
        is_media = relative.suffix.lower() in MEDIA_EXTENSIONS
        if is_media and info["type"] != "directory" and not any(part.startswith(".") for part in relative.parts):
            yield _media_file(filesystem, path, str(relative), info)


def _listed(
    filesystem: AbstractFileSystem, path: str, media_root: str | None, frames_fps: float
) -> Iterator[MediaFile]:
    """The files that a list or an annotation file names; ids are the paths as written, where they are relative."""
    root = media_root.rstrip("/") if media_root else filesystem.unstrip_protocol(str(PurePosixPath(path).parent))
    root_filesystem, root_path = _open(root)
    is_annotation = path.lower().endswith(".jsonl")
    # Lines end at \n alone: file names and JSON strings may hold the other characters that Python takes for line ends.
    with filesystem.open(path, "rb") as file:
        lines = (line.decode("utf-8") for line in file)  # pyright: ignore[reportAttributeAccessIssue]
        lines = (line.removeprefix("\ufeff") if number == 0 else line for number, line in enumerate(lines))
        for name in _annotated_names(path, lines) if is_annotation else _list_names(lines):
            name = name.rstrip("/") or name
            media_filesystem, media_path, video_id = root_filesystem, name, _normalised(name)
            if name.startswith("/") or "://" in name:
                media_filesystem, media_path = _open(name)
                inside = PurePosixPath(media_path).is_relative_to(root_path)
                video_id = str(PurePosixPath(media_path).relative_to(root_path)) if inside else name
            else:
                media_path = f"{root_path}/{video_id}"
            try:
                info = _info(media_filesystem, media_path)
            except FileNotFoundError:
                info = {"type": "file", "size": None}
            if info["type"] == "directory":
                frames = frame_folder_info(media_filesystem, media_path, info)
                if frames is not None:
                    media_path, info = frame_folder_uri(media_path, frames_fps), frames
            yield _media_file(media_filesystem, media_path, video_id, info)


def _list_names(lines: Iterable[str]) -> Iterator[str]:
    stripped = (line.strip() for line in lines)
    return (line for line in stripped if line and not line.startswith("#"))


def _annotated_names(path: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        name = row.get("media") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f'{path}:{number}: expected an object with a "media" path, got {line.strip()[:80]}')
        yield name


def _normalised(name: str) -> str:
    """`./a//b.mp4` and `a/b.mp4` are one file."""
    return str(PurePosixPath(name)) if "./" in name or "//" in name else name


def _media_file(filesystem: AbstractFileSystem, path: str, video_id: str, info: dict[str, Any]) -> MediaFile:
    is_local = isinstance(filesystem, LocalFileSystem)
    size = info["size"]
    return MediaFile(
        video_id=_readable(video_id),
        uri=_readable(path) if is_local else filesystem.unstrip_protocol(path),
        size_bytes=None if size is None else int(size),
        modified=modification(info),
    )


def _readable(name: str) -> str:
    """Itself, or, if it isn't UTF-8, with its odd bytes as \\xNN: no file has that name, so its row is quarantined."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # Half a character, which JSON can spell and no file name can hold.
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def modification(info: dict[str, Any]) -> str | None:
    """What of a filesystem's `info` changes when a file does: its ETag if it has one, else its modification time."""
    for field in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(field) is not None:
            return str(info[field])
    return None


def _unique(videos: str, found: Iterable[MediaFile]) -> Listing:
    table = Listing.of(found).table
    if table.num_rows == 0:
        raise ValueError(
            f"--videos {videos}: no media found; expected files with one of "
            f"{sorted(MEDIA_EXTENSIONS)}, or a .txt list of files with other names"
        )
    # Sorted, so equal ids are neighbours; the same file twice is one input.
    ids, uris = table["video_id"].combine_chunks(), table["uri"].combine_chunks()
    same_id = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    same_uri = pc.equal(uris[1:], uris[:-1]).to_numpy(zero_copy_only=False)
    clashes = np.flatnonzero(same_id & ~same_uri)
    if len(clashes):
        at = int(clashes[0])
        raise ValueError(f"--videos {videos}: {uris[at]} and {uris[at + 1]} would both be {ids[at].as_py()!r}")
    return Listing(table.filter(pa.array(np.append(True, ~same_id))))
