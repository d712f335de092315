"""What a corpus is like: told by the user, or by looking into some of its files. Imports no torch."""

from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from linvt.estimation.config import EstimateConfig
from linvt.extraction.inputs import Listing, list_inputs
from linvt.storage_error import StorageError

_LOOKED_INTO = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Means over the videos."""

    videos: int
    seconds: float
    frames: float
    megapixels: float
    """Of one frame."""
    bytes: float
    looked_into: int = 0
    """Files that these come from; 0 where the user told."""


def corpus_of(config: EstimateConfig) -> Corpus:
    """Raises ValueError where --videos is neither a number nor files that can be looked into."""
    if config.videos.replace("_", "").isdecimal():
        if int(config.videos) < 1:
            raise ValueError(f"--videos {config.videos}: give at least one video")
        return Corpus(
            videos=int(config.videos),
            seconds=config.mean_seconds,
            frames=config.mean_seconds * config.frame_rate,
            megapixels=config.width * config.height / 1e6,
            bytes=config.mean_seconds * config.video_megabits_per_s * 1e6 / 8,
        )
    listing = list_inputs(config.videos, config.media_root)
    rows = np.linspace(0, len(listing) - 1, min(_LOOKED_INTO, len(listing))).astype(int)
    looks = [look for look in (_look(listing, int(row)) for row in np.unique(rows)) if look is not None]
    if not looks:
        raise ValueError(f"--videos {config.videos}: none of {len(rows)} files that were looked into is a video")
    seconds, frames, _ = (float(mean) for mean in np.mean(looks, axis=0))
    sizes = listing.table["size_bytes"].to_numpy(zero_copy_only=False)
    return Corpus(
        videos=len(listing),
        seconds=seconds,
        frames=frames,
        # Weighted by frames: a long video's pixels cost more often.
        megapixels=float(np.average([look[2] for look in looks], weights=[look[1] for look in looks])),
        bytes=float(np.nanmean(sizes.astype(float))),
        looked_into=len(looks),
    )


def _look(listing: Listing, row: int) -> tuple[float, float, float] | None:
    """(seconds, frames, megapixels) by a file's header; None for what is no video."""
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(listing[row].uri)
    try:
        with filesystem.open(path, "rb") as file, av.open(file, metadata_errors="ignore") as container:
            return _facts(container)
    except (av.FFmpegError, FileNotFoundError, IsADirectoryError, StorageError):
        return None


def _facts(container: Any) -> tuple[float, float, float] | None:
    stream = next(iter(container.streams.video), None)
    if stream is None:
        return None
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / 1e6
    else:
        return None
    frames = stream.frames or seconds * float(stream.average_rate or 25)
    return seconds, max(1.0, frames), stream.width * stream.height / 1e6
