"""What decoding gives back, and the one error that says the media itself is bad."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from linvt.video.candidates import CandidatePool

DETECTOR_HEIGHT, DETECTOR_WIDTH = 27, 48


class MediaError(Exception):
    """The media is bad, and will be at every retry. Storage errors (OSError) and MemoryError are never wrapped in it.

    stage: "open" (no readable container, picture or video stream) or "decode" (frames could not be had from it).
    error_class: the decoder's name for what went wrong, or ours: EmptyFile, Playlist, NoVideoStream, NoFrames,
        MostlyCorrupt, AbsurdTimestamps, BrokenImage, AmbiguousFrames, BeyondLimits.
    """

    def __init__(self, stage: str, error_class: str, message: str) -> None:
        super().__init__(stage, error_class, message)  # all three in `args`, so that it survives pickling
        self.stage = stage
        self.error_class = error_class
        self.message = message

    def __str__(self) -> str:
        return f"{self.stage}: {self.error_class}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaLimits:
    """What media of strangers may be at most; beyond it they are bad (MediaError "BeyondLimits")."""

    max_duration_s: float = math.inf
    max_frame_pixels: float = math.inf

    def check_duration(self, duration_s: float) -> None:
        if duration_s > self.max_duration_s:
            raise MediaError("open", "BeyondLimits", f"{duration_s:.0f} s long; at most {self.max_duration_s:.0f} s")

    def check_size(self, width: int, height: int) -> None:
        if width * height > self.max_frame_pixels:
            message = f"frames of {width} × {height} pixels; at most {self.max_frame_pixels:.0f} pixels"
            raise MediaError("open", "BeyondLimits", message)


NO_LIMITS = MediaLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaInfo:
    """Facts about one decoded medium, counted and measured in the pass itself, never taken from a header's claim."""

    kind: Literal["video", "image"]
    """An image (png, jpg, webp) is one frame at time 0, whatever its file is called."""
    container: str
    codec: str
    pixel_format: str
    width: int
    """Display width in pixels: after rotation and sample aspect ratio, before scaling to the encoder."""
    height: int
    """Display height in pixels."""
    rotation_deg: int
    """Counterclockwise turn that was applied, as ffprobe gives `rotation`: 0, 90, 180 or -90."""
    num_frames: int
    duration_s: float
    """When the last frame ends, on the clock of the timestamps; 0 for an image."""
    average_fps: float
    """num_frames over the time they span; 0 for an image."""
    start_s: float
    """Presentation time of the file that is our time 0: what to add to a timestamp to get the stored PTS back."""
    num_bad_packets: int
    """Packets that the decoder refused, and the point where the container became unreadable; of a folder of frames,
    pictures that could not be read. Frames are missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedVideo:
    """The result of one pass over a medium of F frames."""

    info: MediaInfo
    detector_frames: np.ndarray
    """uint8 [F, 27, 48, 3], RGB: every frame, stretched as TransNetV2 expects it; none where they were streamed."""
    timestamps_s: np.ndarray
    """float64 [F], strictly increasing: presentation times, 0 = the start of the file's presentation."""
    pool: CandidatePool
    """Up to `max_candidates` frames at encoder size."""
