"""The first half of the work on one input: fetch, decode, find shots, choose frames. Bad media become rows.

Shapes: F decoded frames, T kept frames.
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np

from linvt.extraction.choice import choose_frames
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.plan import PlannedInput
from linvt.extraction.reading import MediaRead, Reader, Unreadable, read_media
from linvt.extraction.rows import VideoRow
from linvt.extraction.thumbnails import thumbnail_strip
from linvt.shards.layout import sample_key
from linvt.shots import ShotDetector


def decode_input(
    planned: PlannedInput,
    detector: ShotDetector,
    spec: FeatureSpec,
    read: Reader = read_media,
    *,
    thumbnails: bool = False,
) -> tuple[VideoRow, np.ndarray | None]:
    """The frames that stand for one input, uint8 [T, H, W, 3] with T <= spec.num_frames, and what is known of it.

    With `thumbnails`, small pictures of those frames are put into the row.

    Frames are None for a quarantined input: one that is no readable file, or that the decoder calls bad media. Other
    errors (storage, memory, bugs) are not the media's fault and are raised.
    """
    row = VideoRow.of(planned)
    chunks = _Chunks(read(row.uri, spec.max_side, spec.max_candidates))
    started = time.perf_counter()
    try:
        probabilities = detector.predict_stream(chunks)
    except Unreadable as error:
        row = replace(row, sha256=error.sha256, size_bytes=error.size_bytes)
        return row.quarantined(error.stage, error.error_class, error.message), None
    detection_s = time.perf_counter() - started - chunks.seconds
    media = chunks.media
    info = media.info
    if info.num_frames == 1:
        probabilities = np.zeros(1, np.float32)
    row = replace(
        row,
        sha256=media.sha256,
        size_bytes=media.size_bytes,
        fetch_s=media.fetch_s,
        decode_s=media.decode_s,
        kind=info.kind,
        container=info.container,
        codec=info.codec,
        pixel_format=info.pixel_format,
        width=info.width,
        height=info.height,
        rotation_deg=info.rotation_deg,
        num_frames=info.num_frames,
        duration_s=info.duration_s,
        average_fps=info.average_fps,
        start_s=info.start_s,
        num_bad_packets=info.num_bad_packets,
        boundary_probabilities=probabilities,
        timestamps_s=media.timestamps_s,
        candidate_frames=media.candidates,
        shots_detection_s=detection_s,
    )
    row = choose_frames(row, spec)
    frames = media.take(np.array(row.kept_frames))
    strip = thumbnail_strip(frames) if thumbnails else None
    return replace(row, key=sample_key(media.sha256, row.video_id), thumbnails=strip), frames


class _Chunks:
    """The detector's frames as they come; afterwards `media`, and how many `seconds` were spent waiting for them."""

    def __init__(self, source: Generator[np.ndarray, None, MediaRead]) -> None:
        self._source, self._media = source, None
        self.seconds = 0.0

    @property
    def media(self) -> MediaRead:
        assert self._media is not None, "a detector must take every chunk"
        return self._media

    def __iter__(self) -> Iterator[np.ndarray]:
        """Nothing for a medium of a single frame: without shots to find, a detector's window would cost 60 frames."""
        held = None
        while True:
            started = time.perf_counter()
            try:
                chunk = next(self._source)
            except StopIteration as end:
                self._media = end.value
                if held is not None and end.value.info.num_frames > 1:
                    yield held
                return
            finally:
                self.seconds += time.perf_counter() - started
            if held is not None:
                yield held
            held = chunk
