"""From a fetched media file to the frame tokens that a request is answered from, by the extraction's own functions.

Shape legend: T kept frames, H×W pixels.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import av
import av.error
import numpy as np

from linvt.backbones import Backbone
from linvt.extraction.decode import decode_input
from linvt.extraction.encode import encode_input
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.inputs import MediaFile
from linvt.extraction.plan import PlannedInput
from linvt.extraction.rows import VideoRow
from linvt.serving.errors import RequestError
from linvt.serving.media import IMAGE_CONTAINERS, LocalMedia
from linvt.serving.requests import VideoOptions
from linvt.shards import CachedVideo
from linvt.shots import fast_detector_dtype, load_detector


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeOrder:
    """What to make of one media file. Small and picklable: it crosses to the process that decodes."""

    path: Path
    kind: Literal["video", "image"]
    spec: FeatureSpec
    """`num_frames` is the most frames to keep."""
    detector: str
    detector_weights: Path | None = None
    fps: float | None
    """Frames to keep per second of video, instead of `spec.num_frames`, which then only bounds them."""
    max_duration_s: float
    max_frame_pixels: float


def decode_order(
    media: LocalMedia,
    kind: Literal["video", "image"],
    options: VideoOptions,
    *,
    spec: FeatureSpec,
    detector: str,
    detector_weights: Path | None = None,
    max_frames: int,
    max_duration_s: float,
    max_frame_pixels: float,
) -> DecodeOrder:
    """The order for a file of a request. Raises RequestError: 400 for too many frames, 422 for a video as an image."""
    if options.num_frames is not None and options.num_frames > max_frames:
        raise RequestError(
            400,
            f"num_frames={options.num_frames}: this server takes at most {max_frames}",
            code="too_many_frames",
            param="media_io_kwargs.video.num_frames",
        )
    if kind == "image" and media.container not in IMAGE_CONTAINERS:
        raise RequestError(
            422,
            f"image_url leads to {media.container}; expected one of {', '.join(sorted(IMAGE_CONTAINERS))}",
            code="media_not_decodable",
        )
    num_frames = max_frames if options.fps is not None else options.num_frames or spec.num_frames
    # The kept frames are chosen among the candidates: too few of them would blur the choice.
    few = num_frames == spec.num_frames or 2 * num_frames <= spec.max_candidates
    max_candidates = spec.max_candidates if few else 2 * num_frames
    return DecodeOrder(
        path=media.path,
        kind=kind,
        spec=replace(spec, num_frames=num_frames, max_candidates=max_candidates),
        detector=detector,
        detector_weights=detector_weights,
        fps=options.fps,
        max_duration_s=max_duration_s,
        max_frame_pixels=max_frame_pixels,
    )


def decode(order: DecodeOrder) -> tuple[VideoRow, np.ndarray | None]:
    """Decodes, finds shots, keeps frames uint8 [T, H, W, 3]; bad media become a quarantined row without frames.

    Meant for a process of its own: a decoder can crash, hang or outgrow memory on hostile media.
    """
    spec = order.spec
    media = MediaFile(video_id=order.path.name, uri=str(order.path), size_bytes=None, modified=None)
    planned = PlannedInput(slot=0, shard=0, generation=0, media=media)
    claimed = _claims(order.path)
    problem = _beyond_limits(order, claimed.duration_s, claimed.frame_pixels)
    if problem is not None:
        return VideoRow.of(planned).quarantined("open", "BeyondLimits", problem), None
    if order.fps is not None and claimed.duration_s is not None:
        spec = replace(spec, num_frames=max(1, min(spec.num_frames, math.ceil(order.fps * claimed.duration_s))))
    row, frames = decode_input(planned, _detector(order.detector, order.detector_weights), spec)
    problem = _beyond_limits(order, row.duration_s, None)
    if problem is not None:
        return row.quarantined("decode", "BeyondLimits", problem), None
    return row, frames


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Claims:
    """What a container's header says, which costs no decoding; None where it says nothing."""

    duration_s: float | None = None
    frame_pixels: int | None = None


def _claims(path: Path) -> _Claims:
    with path.open("rb") as file:
        # As in linvt.video: without its name and without protocols, so that no playlist opens anything.
        nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
        try:
            with av.open(nameless, "r", container_options={"protocol_whitelist": ""}) as container:
                return _Claims(
                    duration_s=None if container.duration is None else container.duration / av.time_base,
                    frame_pixels=max(
                        (stream.width * stream.height for stream in container.streams.video), default=None
                    ),
                )
        except av.error.FFmpegError:
            return _Claims()


def _beyond_limits(order: DecodeOrder, duration_s: float | None, frame_pixels: int | None) -> str | None:
    if duration_s is not None and duration_s > order.max_duration_s:
        return f"{duration_s:.0f} s long; this server takes at most {order.max_duration_s:.0f} s"
    if frame_pixels is not None and frame_pixels > order.max_frame_pixels:
        return f"frames of {frame_pixels} pixels; this server takes at most {order.max_frame_pixels:.0f}"
    return None
