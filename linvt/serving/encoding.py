"""From a fetched media file to the frame tokens that a request is answered from, by the extraction's own functions.

Shape legend: T kept frames, H×W pixels.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from linvt.backbones import Backbone
from linvt.extraction.decode import decode_input
from linvt.extraction.decode_process import DecoderDied
from linvt.extraction.encode import encode_input
from linvt.extraction.frame_folders import frame_folder_uri
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.inputs import MediaFile
from linvt.extraction.plan import PlannedInput
from linvt.extraction.reading import Reader, read_media
from linvt.extraction.rows import VideoRow
from linvt.serving.errors import RequestError
from linvt.serving.media import FRAMES, IMAGE_CONTAINERS
from linvt.serving.requests import VideoOptions
from linvt.shards import CachedVideo
from linvt.shots import fast_detector_dtype, load_detector

_FRAMES_FPS = 1.0
"""Frames that a client took come without times; these are their numbers, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeOrder:
    """What to make of one media file."""

    kind: Literal["video", "image"]
    spec: FeatureSpec
    """`num_frames` is the most frames to keep."""
    detector: str
    detector_weights: Path | None = None
    is_frames: bool = False
    """Whether it is a folder of frames."""


def decode_order(
    container: str,
    kind: Literal["video", "image"],
    options: VideoOptions,
    *,
    spec: FeatureSpec,
    detector: str,
    detector_weights: Path | None = None,
    max_frames: int,
) -> DecodeOrder:
    """The order for media of a request, in this `container` (`LocalMedia`).

    Raises RequestError: 400 for too many frames, 422 for a video as an image.
    """
    if options.num_frames is not None and options.num_frames > max_frames:
        raise RequestError(
            400,
            f"num_frames={options.num_frames}: this server takes at most {max_frames}",
            code="too_many_frames",
            param="media_io_kwargs.video.num_frames",
        )
    if kind == "image" and container not in IMAGE_CONTAINERS:
        raise RequestError(
            422,
            f"image_url leads to {container}; expected one of {', '.join(sorted(IMAGE_CONTAINERS))}",
            code="media_not_decodable",
        )
    is_frames = container == FRAMES
    # Of frames that the client chose none is left out, unless it says so.
    all_frames = max_frames if is_frames or options.fps is not None else spec.num_frames
    num_frames = options.num_frames or all_frames
    # The kept frames are chosen among the candidates: too few of them would blur the choice.
    few = num_frames == spec.num_frames or 2 * num_frames <= spec.max_candidates
    max_candidates = spec.max_candidates if few else 2 * num_frames
    spec = replace(spec, num_frames=num_frames, max_candidates=max_candidates)
    if options.fps is not None:
        spec = replace(spec, sampling="fps", fps=options.fps)
    return DecodeOrder(
        kind=kind,
        spec=spec,
        # Between frames that a client took, every one is a cut.
        detector="none" if is_frames else detector,
        detector_weights=None if is_frames else detector_weights,
        is_frames=is_frames,
    )


def decode(order: DecodeOrder, path: Path, read: Reader = read_media) -> tuple[VideoRow, np.ndarray | None]:
    """Decodes, finds shots, keeps frames uint8 [T, H, W, 3]; bad media become a quarantined row without frames.

    A server of strangers' media passes as `read` a `DecodeProcess` with limits: a decoder can crash, hang or outgrow
    memory on hostile media, which is then a quarantined row too.
    """
    uri = frame_folder_uri(str(path), _FRAMES_FPS) if order.is_frames else str(path)
    planned = PlannedInput(
        slot=0, shard=0, generation=0, media=MediaFile(video_id=path.name, uri=uri, size_bytes=None, modified=None)
    )
    try:
        return decode_input(planned, _detector(order.detector, order.detector_weights), order.spec, read)
    except DecoderDied as death:
        return VideoRow.of(planned).quarantined("decode", death.error_class, death.message), None


def encode(
    backbone: Backbone, order: DecodeOrder, row: VideoRow, frames: np.ndarray | None, *, batch_size: int
) -> CachedVideo:
    """The frame tokens of a decoded file. Raises RequestError 422 where decoding found the media bad."""
    info_json = tokens = None
    if frames is not None:
        row, info_json, tokens = encode_input(
            row, frames, backbone, order.spec, batch_size=batch_size, device=str(backbone.device)
        )
    if info_json is None or tokens is None:
        raise RequestError(
            422, f"the {order.kind} cannot be read: {row.error_class}: {row.message}", code="media_not_decodable"
        )
    return CachedVideo.from_bytes(info_json, tokens)


@lru_cache(maxsize=2)
def _detector(name: str, weights: Path | None):
    return load_detector(name, weights=weights, dtype=fast_detector_dtype(name))
