"""A folder of numbered pictures as a video: frames that were taken from it beforehand, at a known rate.

v_abc/c01_0001.jpeg
v_abc/c01_0002.jpeg      ->  a video; the i-th picture, counted from 0 in the order of their numbers, is at i / fps
v_abc/c01_0004.jpeg
"""

import re
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from linvt.video.candidates import CandidateCollector
from linvt.video.geometry import fit
from linvt.video.image import Picture, read_picture
from linvt.video.media import (
    DETECTOR_HEIGHT,
    DETECTOR_WIDTH,
    NO_LIMITS,
    DecodedVideo,
    MediaError,
    MediaInfo,
    MediaLimits,
)

_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>[0-9]+)\.(jpe?g|png)", re.IGNORECASE | re.DOTALL)
# Handed on at least this often, so that slow decoding can be told from none.
_CHUNK_FRAMES = 16


def is_frame(name: str) -> bool:
    """Whether a file of this name may be a frame: a JPEG or PNG whose name ends in a number, and is not hidden."""
    return not name.startswith(".") and _NUMBERED.fullmatch(name) is not None


def ordered_frames(names: Iterable[str]) -> list[str]:
    """The frames among `names`, by number (2 comes before 10); other files are no part of the video.

    Raises MediaError unless they differ in their number alone.
    """
    frames: dict[tuple[str, int], str] = {}
    for name in sorted(names):
        match = _NUMBERED.fullmatch(name)
        if match is None or name.startswith("."):
            continue
        key = match["prefix"], int(match["number"])
        if key in frames:
            raise MediaError("open", "AmbiguousFrames", f"{frames[key]} and {name} have one number")
        frames[key] = name
    prefixes = sorted({prefix for prefix, _ in frames})
    if len(prefixes) > 1:
        raise MediaError("open", "AmbiguousFrames", f"frames of more than one video: {prefixes[0]}… and {prefixes[1]}…")
    if not frames:
        raise MediaError("open", "NoFrames", "a folder without numbered JPEG or PNG files")
    return [frames[key] for key in sorted(frames)]


def stream_frame_folder(
    folder: Path, fps: float, *, max_side: int, max_candidates: int, limits: MediaLimits = NO_LIMITS
) -> Generator[np.ndarray, None, DecodedVideo]:
    """`stream_video` for a folder of frames. Pictures of another size than the first one's are stretched to it.

    Broken pictures are left out and counted (`info.num_bad_packets`), the others keep their times. Raises MediaError if
    there are more broken ones than others, and OSError if a file could not be read.
    """
    names = ordered_frames(entry.name for entry in folder.iterdir())
    limits.check_duration(len(names) / fps)
    collector: CandidateCollector[Image.Image] | None = None
    first: Picture | None = None
    chunk, timestamps_s, problem = [], [], None
    for position, name in enumerate(names):
        try:
            with (folder / name).open("rb") as file:
                picture = read_picture(file, limits=limits)
        except MediaError as error:
            problem = f"{name}: {error.message}"
            continue
        if first is None or collector is None:
            first, size = picture, fit(picture.image.width, picture.image.height, max_side)
            collector = CandidateCollector(max_candidates, _scaler(size))
        thumbnail = np.asarray(picture.image.resize((DETECTOR_WIDTH, DETECTOR_HEIGHT), Image.Resampling.BICUBIC))
        collector.add(len(timestamps_s), picture.image, thumbnail)
        timestamps_s.append(position / fps)
        chunk.append(thumbnail)
        if len(chunk) == _CHUNK_FRAMES:
            yield np.stack(chunk)
            chunk.clear()
    num_frames, num_bad = len(timestamps_s), len(names) - len(timestamps_s)
    if first is None or collector is None or num_bad > num_frames:
        what = f"{num_bad} of {len(names)} pictures cannot be read, the last: {problem}"
        raise MediaError("decode", "MostlyCorrupt" if num_frames else "NoFrames", what)
    if chunk:
        yield np.stack(chunk)
    duration_s = len(names) / fps
    return DecodedVideo(
        info=MediaInfo(
            kind="video",
            container="frames",
            codec=first.codec,
            pixel_format=first.mode,
            width=first.image.width,
            height=first.image.height,
            rotation_deg=first.orientation.rotation_deg,
            num_frames=num_frames,
            duration_s=duration_s,
            average_fps=num_frames / (duration_s - timestamps_s[0]),
            start_s=0.0,
            num_bad_packets=num_bad,
        ),
        detector_frames=np.zeros((0, DETECTOR_HEIGHT, DETECTOR_WIDTH, 3), np.uint8),
        timestamps_s=np.array(timestamps_s, np.float64),
        pool=collector.finish(),
    )


def _scaler(size: tuple[int, int]) -> Callable[[Image.Image], np.ndarray]:
    return lambda image: np.asarray(image.resize(size, Image.Resampling.BICUBIC))
