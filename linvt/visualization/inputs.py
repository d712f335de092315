"""What is looked at: a video's frame tokens, from its file or from a cache, and pictures of the same frames.

Shape legend: T frames, N tokens a frame, H×W pixels.
"""

from pathlib import Path

import numpy as np

from linvt.backbones import Backbone
from linvt.extraction.decode import decode_input
from linvt.extraction.encode import encode_input
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.inputs import MediaFile
from linvt.extraction.plan import PlannedInput
from linvt.extraction.reading import MediaRead, Unreadable, read_media
from linvt.extraction.rows import VideoRow
from linvt.shards import CachedVideo, read_cache
from linvt.shots import ShotDetector

PICTURE_SIDE_PX = 512
"""Print quality at the width of a few centimetres; what the encoder saw may be a tenth of it."""


def encode_file(
    uri: str, backbone: Backbone, spec: FeatureSpec, detector: ShotDetector, *, batch_size: int
) -> CachedVideo:
    """Decode, find shots, choose frames, encode: as an extraction does it, in this process.

    Raises ValueError for a file that cannot be read as a video.
    """
    media = MediaFile(video_id=Path(uri).name, uri=uri, size_bytes=None, modified=None)
    row, frames = decode_input(PlannedInput(slot=0, shard=0, generation=0, media=media), detector, spec)
    info_json = tokens = None
    if frames is not None:
        row, info_json, tokens = encode_input(
            row, frames, backbone, spec, batch_size=batch_size, device=str(backbone.device)
        )
    if info_json is None or tokens is None:
        raise ValueError(f"{uri} cannot be read: {_reason(row)}")
    return CachedVideo.from_bytes(info_json, tokens)


def cached_sample(cache_uri: str, sample: str) -> CachedVideo:
    """A sample of an extraction, by its key or its video id. Raises ValueError where there is none."""
    cache = read_cache(cache_uri)
    key = cache.video_ids.get(sample, sample)
    if key not in cache:
        some = ", ".join(list(cache.video_ids)[:3])
        raise ValueError(f"--sample {sample}: {cache_uri} has no such key or video id; it has {some}, …")
    return cache.get(key)


def pictures_of(video: CachedVideo, uri: str, *, max_candidates: int) -> np.ndarray:
    """The frames of a video's tokens as pictures, uint8 [T, H, W, 3], decoded from the file at `uri`.

    `max_candidates`: of the extraction that made the tokens, since only candidates can be had. Raises ValueError for a
    file that cannot be read, or is another than the tokens were made from.
    """
    try:
        media = _read(uri, max_candidates)
    except Unreadable as error:
        raise ValueError(f"{uri} cannot be read: {error}") from error
    if media.sha256 != video.sha256:
        raise ValueError(
            f"{uri} is not the file that {video.video_id}'s tokens were made from (sha256 {media.sha256[:8]}…, "
            f"expected {video.sha256[:8]}…): its pictures would belong to other weights"
        )
    at = np.abs(media.timestamps_s[media.candidates][:, None] - video.timestamps_s).argmin(0)
    return media.take(media.candidates[at])


def _read(uri: str, max_candidates: int) -> MediaRead:
    """One pass that keeps candidates at picture size and drops the detector's frames."""
    stream = read_media(uri, PICTURE_SIDE_PX, max_candidates)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def _reason(row: VideoRow) -> str:
    return f"{row.error_class}: {row.message}"
