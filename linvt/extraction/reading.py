"""One pass over one input's bytes: fetch, hash, decode. Here, or (`decode_process`) where a crash does no harm.

Shape legend: F decoded frames, P candidates, n frames of a chunk.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linvt.extraction.fetch import error_class, local_copy, names_no_file
from linvt.extraction.frame_folders import split_frame_folder_uri
from linvt.storage_error import explained
from linvt.video import (
    NO_LIMITS,
    DecodedVideo,
    MediaError,
    MediaInfo,
    MediaLimits,
    is_frame,
    stream_frame_folder,
    stream_video,
)


@dataclass(slots=True)
class Unreadable(Exception):
    """An input that will be no better at the next try: no readable file, or bad media."""

    stage: str
    """"fetch", "open" or "decode"."""
    error_class: str
    message: str
    sha256: str | None = None
    """Of the content, where it could be read."""
    size_bytes: int | None = None

    def __str__(self) -> str:
        return f"{self.stage}: {self.error_class}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaRead:
    """What a pass gives beside the detector's frames."""

    sha256: str
    size_bytes: int
    fetch_s: float
    decode_s: float
    info: MediaInfo
    timestamps_s: np.ndarray
    """float64 [F]."""
    candidates: np.ndarray
    """int64 [P]: the frames that can be had by `take`."""
    take: Callable[[np.ndarray], np.ndarray]
    """The candidates of some of these indices, uint8 [T, H, W, 3]; to be called once."""


Reader = Callable[[str, int, int], Generator[np.ndarray, None, MediaRead]]
"""(uri, max_side, max_candidates) -> yields uint8 [n, 27, 48, 3], returns the rest."""


def read_media(
    uri: str,
    max_side: int,
    max_candidates: int,
    *,
    alive: Callable[[], None] = lambda: None,
    limits: MediaLimits = NO_LIMITS,
) -> Generator[np.ndarray, None, MediaRead]:
    """A `Reader` in this process. Raises Unreadable, StorageError or MemoryError."""
    started = time.perf_counter()
    try:
        with local_copy(uri, alive) as (path, sha256):
            fetch_s, size_bytes = time.perf_counter() - started, _size_bytes(path)
            if frames := split_frame_folder_uri(uri):
                stream = stream_frame_folder(
                    path, frames[1], max_side=max_side, max_candidates=max_candidates, limits=limits
                )
            else:
                stream = stream_video(path, max_side=max_side, max_candidates=max_candidates, limits=limits)
            try:
                video, decode_s = yield from _timed(stream)
            except MediaError as error:
                raise Unreadable(error.stage, error.error_class, error.message, sha256, size_bytes) from error
    except OSError as error:
        if names_no_file(error):
            raise Unreadable("fetch", error_class(error), str(error)) from error
        with explained(uri, "cannot be read"):
            raise
    return MediaRead(
        sha256=sha256,
        size_bytes=size_bytes,
        fetch_s=fetch_s,
        decode_s=decode_s,
        info=video.info,
        timestamps_s=video.timestamps_s,
        candidates=video.pool.indices,
        take=lambda indices: video.pool.get(indices)[0],
    )


def _size_bytes(path: Path) -> int:
    """Of a file, or of a folder's frames together."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if is_frame(file.name))
    return path.stat().st_size


def _timed(
    stream: Generator[np.ndarray, None, DecodedVideo],
) -> Generator[np.ndarray, None, tuple[DecodedVideo, float]]:
    """The stream, and how many seconds it worked: what happens between two chunks is not decoding."""
    seconds = 0.0
    while True:
        started = time.perf_counter()
        try:
            chunk = next(stream)
        except StopIteration as end:
            return end.value, seconds + time.perf_counter() - started
        seconds += time.perf_counter() - started
        yield chunk
