"""One streaming pass over a video: every frame for the shot detector, its time, and candidates for the encoder."""

import contextlib
import errno
import itertools
import math
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from linvt.video.candidates import CandidateCollector
from linvt.video.clock import PresentationClock
from linvt.video.geometry import DETECTOR_SCALER, PICTURE_SCALER, Orientation, PictureRenderer, displayed_width, fit
from linvt.video.image import decode_image, is_image
from linvt.video.media import (
    DETECTOR_HEIGHT,
    DETECTOR_WIDTH,
    NO_LIMITS,
    DecodedVideo,
    MediaError,
    MediaInfo,
    MediaLimits,
)

_READ_SIZE_BYTES = 1 << 20
_FARTHEST_BYTES = 1 << 43  # ext4 ends at twice that
# Detector frames are handed on at least this often, so that slow decoding can be told from none.
_CHUNK_FRAMES = 250
_CHUNK_S = 1.0
_PLAYLISTS = (b"#EXTM3U", b"ffconcat")
# Up to here float seconds tell microseconds apart, and int64 nanoseconds do not overflow.
_LATEST_S = 1e9
_NO_DETECTOR_FRAMES = np.zeros((0, DETECTOR_HEIGHT, DETECTOR_WIDTH, 3), np.uint8)


def decode_video(
    source: str | Path | BinaryIO, *, max_side: int, max_candidates: int, num_threads: int = 1
) -> DecodedVideo:
    """`stream_video`, with all of its detector frames kept in the result: 4 kB a frame."""
    chunks: list[np.ndarray] = []
    stream = stream_video(source, max_side=max_side, max_candidates=max_candidates, num_threads=num_threads)
    while True:
        try:
            chunks.append(next(stream))
        except StopIteration as end:
            return replace(end.value, detector_frames=np.concatenate(chunks))


def stream_video(
    source: str | Path | BinaryIO,
    *,
    max_side: int,
    max_candidates: int,
    num_threads: int = 1,
    limits: MediaLimits = NO_LIMITS,
) -> Generator[np.ndarray, None, DecodedVideo]:
    """Decodes a local file, or a seekable binary file from its start, once; an image becomes a one-frame video.

    Yields the detector's frames, uint8 [n, 27, 48, 3] with n >= 1, in chunks as they are decoded, so that memory does
    not grow with the video; returns everything else (`detector_frames` of the result is empty). The result is a
    function of the bytes alone: the format is found from the content, never from the name, and nothing that the media
    refers to (playlists, URLs) is opened.

    - Stream: the first video stream that is not an attached picture (cover art).
    - Damage: packets that the decoder refuses are skipped and counted (`info.num_bad_packets`); where the container
      itself becomes unreadable, decoding ends with the frames before. If no frame is left, or fewer frames than bad
      packets, the media is bad. So it is if its times lead further than 30 years (see `PresentationClock` for less).
    - Size and upright position come from the first frame; later ones are stretched to it.

    Args:
        max_side: longest side of the candidates, in pixels; smaller media are not enlarged.
        max_candidates: most frames to keep at that size.
        num_threads: decoder threads. Valid streams decode to the same frames with any number of them, broken ones
            may not.
        limits: judged by what the header says, before anything is decoded, and again by what comes of decoding.

    Raises:
        MediaError: the media is bad.
        OSError: it could not be read (FileNotFoundError, a storage fault, …).
        ValueError: max_side, max_candidates or num_threads is below 1.
    """
    for name, value in (("max_side", max_side), ("max_candidates", max_candidates), ("num_threads", num_threads)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(source, "rb")) if isinstance(source, str | Path) else source
        file.seek(0)
        head = file.read(16)
        file.seek(0)
        if not head:
            raise MediaError("open", "EmptyFile", "the file has 0 bytes")
        if head.startswith(_PLAYLISTS):
            raise MediaError("open", "Playlist", "it names other files, which are not opened; name those as inputs")
        if is_image(head):
            image = decode_image(file, max_side=max_side, limits=limits)
            yield image.detector_frames
            return replace(image, detector_frames=_NO_DETECTOR_FRAMES)
        try:
            return (yield from _decode_stream(file, max_side, max_candidates, num_threads, limits))
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:  # reading is ours, so what FFmpeg itself reports is about the content
            raise MediaError("decode", type(error).__name__, _describe(error)) from error


def _decode_stream(
    file: BinaryIO, max_side: int, max_candidates: int, num_threads: int, limits: MediaLimits
) -> Generator[np.ndarray, None, DecodedVideo]:
    with _opened(file) as container:
        stream = _video_stream(container)
        stream.codec_context.thread_count = num_threads
        limits.check_size(stream.codec_context.width, stream.codec_context.height)
        limits.check_duration(0.0 if container.duration is None else container.duration / av.time_base)
        if limits.max_frame_pixels < math.inf:
            # A stream can grow on its way: the decoder then refuses a frame before it takes memory for it.
            stream.codec_context.options = {"max_pixels": str(int(limits.max_frame_pixels))}
        assert stream.time_base is not None
        clock = PresentationClock(
            time_base=stream.time_base,
            start_s=None if container.start_time is None else container.start_time / av.time_base,
            nominal_fps=stream.guessed_rate or stream.average_rate,
        )
        packets = _PacketReader(container, stream)
        frames = packets.frames()
        first = next(frames, None)
        if first is None:
            raise MediaError("decode", "NoFrames", f"no frame could be decoded; {packets.problem}")

        orientation = Orientation.of(first)
        width, height = orientation.swap(displayed_width(first.width, stream.sample_aspect_ratio), first.height)
        detector_view = PictureRenderer(DETECTOR_WIDTH, DETECTOR_HEIGHT, orientation, DETECTOR_SCALER)
        encoder_view = PictureRenderer(*fit(width, height, max_side), orientation, PICTURE_SCALER)
        collector = CandidateCollector(max_candidates, encoder_view)
        pixel_format = first.format.name
        chunk: list[np.ndarray] = []
        chunk_started, timestamps_s = time.monotonic(), []
        for index, frame in enumerate(itertools.chain([first], frames)):
            thumbnail = detector_view(frame)
            chunk.append(thumbnail)
            timestamps_s.append(clock.time_s(frame.pts, frame.duration or 0))
            limits.check_duration(timestamps_s[-1])
            collector.add(index, frame, thumbnail)
            if len(chunk) == _CHUNK_FRAMES or time.monotonic() - chunk_started > _CHUNK_S:
                yield np.stack(chunk)
                chunk.clear()
                chunk_started = time.monotonic()
        if chunk:
            yield np.stack(chunk)
        pool = collector.finish()
        num_frames = len(timestamps_s)
        if packets.num_bad > num_frames:
            raise MediaError(
                "decode",
                "MostlyCorrupt",
                f"{packets.num_bad} packets could not be decoded, only {num_frames} frames could; {packets.problem}",
            )
        if clock.end_s > _LATEST_S:
            message = f"{num_frames} frames in {clock.end_s:.3g} s; expected less than {_LATEST_S:.0g} s, 30 years"
            raise MediaError("decode", "AbsurdTimestamps", message)
        info = MediaInfo(
            kind="video",
            container=container.format.name,
            codec=stream.codec.name,
            pixel_format=pixel_format,
            width=width,
            height=height,
            rotation_deg=orientation.rotation_deg,
            num_frames=num_frames,
            duration_s=clock.end_s,
            average_fps=num_frames / (clock.end_s - timestamps_s[0]),
            start_s=clock.start_s or 0.0,
            num_bad_packets=packets.num_bad,
        )
    return DecodedVideo(
        info=info,
        detector_frames=_NO_DETECTOR_FRAMES,
        timestamps_s=np.array(timestamps_s, np.float64),
        pool=pool,
    )


def _opened(file: BinaryIO) -> InputContainer:
    # Without its name, so that the content alone decides on the format; without protocols, so that no playlist can
    # make the decoder open another file or address.
    nameless = SimpleNamespace(read=file.read, seek=partial(_seek, file), tell=file.tell)
    options = {"protocol_whitelist": ""}
    try:
        container = av.open(
            nameless, "r", container_options=options, metadata_errors="replace", buffer_size=_READ_SIZE_BYTES
        )
        return cast(InputContainer, container)
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise MediaError("open", type(error).__name__, _describe(error)) from error


def _seek(file: BinaryIO, offset: int, whence: int = os.SEEK_SET) -> int:
    """Damaged media send FFmpeg to where no file reaches. File systems differ in how far they go along before they
    raise an error, which would pass for a storage fault; we refuse by FFmpeg's own code, at one point for all."""
    return -errno.EINVAL if offset > _FARTHEST_BYTES else file.seek(offset, whence)


def _video_stream(container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise MediaError("open", "DecoderNotFoundError", f"no decoder for video stream {stream.index}")
            return stream
    kinds = {"attached picture" if stream.type == "video" else str(stream.type) for stream in container.streams}
    raise MediaError(
        "open", "NoVideoStream", f"{container.format.name} without a video stream; it has: {sorted(kinds) or 'nothing'}"
    )


class _PacketReader:
    """Frames of one stream in presentation order, past damaged packets."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container = container
        self._stream = stream
        self._num_packets = self.num_bad = 0
        self._last_problem = "without an error"

    @property
    def problem(self) -> str:
        """What can be said of missing frames."""
        return f"{self._num_packets} packets were read, {self._last_problem}"

    def frames(self) -> Iterator[av.VideoFrame]:
        for packet in self._packets():
            # An empty packet stands for "as before" (AVI); to the decoder it would mean the end of the stream.
            if packet.size > 0:
                self._num_packets += 1
                yield from self._decode(packet)
        yield from self._decode(None)

    def _packets(self) -> Iterator[av.Packet]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.MemoryError:
                raise
            except av.error.FFmpegError as error:
                self._count(error)
                return
            if packet is None:
                return
            yield packet

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            return self._stream.codec_context.decode(packet)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            self._count(error)
            return []

    def _count(self, error: av.error.FFmpegError) -> None:
        self.num_bad += 1
        self._last_problem = f"the last problem: {type(error).__name__}: {_describe(error)}"


def _describe(error: av.error.FFmpegError) -> str:
    return str(error.strerror or error)
