"""Bytes -> frames with timestamps in one pass: what the shot detector sees, and a bounded pool of frames to encode."""

from linvt.video.candidates import CandidatePool
from linvt.video.decode import decode_video, stream_video
from linvt.video.frame_folder import is_frame, ordered_frames, stream_frame_folder
from linvt.video.media import NO_LIMITS, DecodedVideo, MediaError, MediaInfo, MediaLimits

__all__ = [
    "NO_LIMITS",
    "CandidatePool",
    "DecodedVideo",
    "MediaError",
    "MediaInfo",
    "MediaLimits",
    "decode_video",
    "is_frame",
    "ordered_frames",
    "stream_frame_folder",
    "stream_video",
]
