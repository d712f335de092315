"""Real encoded media for tests."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.stream import Disposition

MILLISECOND = Fraction(1, 1000)


def numbered_frames(count: int, *, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames uint8 [height, width, 3] whose brightness tells their number (`number_of`), with a bright top left."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), 20 + number * 4 % 200, np.uint8)
        frame[: height // 4, : width // 4] = 250
        frames.append(frame)
    return frames


def number_of(frame: np.ndarray) -> int:
    """The number of a frame of `numbered_frames` (up to 50 of them), at any size or orientation."""
    height, width = frame.shape[:2]
    middle = frame[height * 2 // 5 : height * 3 // 5, width * 2 // 5 : width * 3 // 5]
    return round((float(middle.mean()) - 20) / 4)


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    pts_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    aspect: Fraction | None = None,
    rotation: tuple[int, bool, bool] | None = None,
    cover: bool = False,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encodes `frames` at times `pts_ms` (default 25 fps). `rotation`: (degrees, hflip, vflip) of the display matrix.

    With `cover`, the file also has an attached picture.
    """
    options = {"crf": "4", "bf": "3", "g": "12", "preset": "ultrafast"} if codec == "libx264" else {}
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = MILLISECOND
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        if cover:
            _attach_picture(output)
        for number, frame in enumerate(frames):
            pts = 40 * number if pts_ms is None else pts_ms[number]
            output.mux(stream.encode(_video_frame(frame, pts, pixel_format)))
        output.mux(stream.encode(None))
    return path


def write_audio(path: Path, *, cover: bool = False) -> Path:
    """A tenth of a second of silence, with an attached picture if `cover`."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le" if path.suffix == ".wav" else "aac", rate=8000)
        if cover:
            _attach_picture(output)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))
    return path


def _attach_picture(output: OutputContainer) -> None:
    stream = output.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
    stream.disposition = Disposition.attached_pic
    output.mux(stream.encode(_video_frame(np.full((16, 16, 3), 99, np.uint8), 0, "yuvj420p")))
    output.mux(stream.encode(None))


def _video_frame(picture: np.ndarray, pts_ms: int, pixel_format: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
    frame.pts, frame.time_base = pts_ms, MILLISECOND
    return frame
