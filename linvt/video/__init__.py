"""Bytes -> frames with timestamps in one pass: what the shot detector sees, and a bounded pool of frames to encode."""

from linvt.video.candidates import CandidatePool
from linvt.video.decode import decode_video, stream_video
from linvt.video.media import DecodedVideo, MediaError, MediaInfo

__all__ = ["CandidatePool", "DecodedVideo", "MediaError", "MediaInfo", "decode_video", "stream_video"]
