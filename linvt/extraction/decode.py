"""The first half of the work on one input: fetch, decode, find shots, choose frames. Bad media become rows.

Shapes: F decoded frames, T kept frames.
"""

import time
from dataclasses import replace

import numpy as np

from linvt.extraction.fetch import local_copy
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.plan import PlannedInput
from linvt.extraction.rows import VideoRow
from linvt.sampling import sample_frames
from linvt.shards.layout import sample_key
from linvt.shots import Shot, ShotDetector, shots_from_probabilities
from linvt.video import DecodedVideo, MediaError, decode_video


def decode_input(
    planned: PlannedInput, detector: ShotDetector, spec: FeatureSpec
) -> tuple[VideoRow, np.ndarray | None]:
    """The frames that stand for one input, uint8 [T, H, W, 3] with T <= spec.num_frames, and what is known of it.

    Frames are None for a quarantined input: one that is no readable file, or that the decoder calls bad media. Other
    errors (storage, memory, bugs) are not the media's fault and are raised.
    """
    row = VideoRow.of(planned)
    clock = time.perf_counter
    started = clock()
    try:
        with local_copy(row.uri) as (path, sha256):
            row = replace(row, sha256=sha256, size_bytes=path.stat().st_size, fetch_s=clock() - started)
            started = clock()
            video = decode_video(path, max_side=spec.max_side, max_candidates=spec.max_candidates)
    except MediaError as error:
        return row.quarantined(error.stage, error.error_class, error.message), None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        return row.quarantined("fetch", type(error).__name__, str(error)), None
    row = replace(row, decode_s=clock() - started)

    started = clock()
    probabilities = _boundary_probabilities(video, detector)
    shots = shots_from_probabilities(probabilities, spec.shot_threshold)
    row = replace(row, boundary_probabilities=probabilities, shots_detection_s=clock() - started)
    row, frames = _keep_frames(row, video, shots, spec.num_frames)
    return replace(row, key=sample_key(sha256, row.video_id)), frames


def _boundary_probabilities(video: DecodedVideo, detector: ShotDetector) -> np.ndarray:
    if len(video.detector_frames) == 1:
        return np.zeros(1, np.float32)
    return detector.predict(video.detector_frames)


def _keep_frames(row: VideoRow, video: DecodedVideo, shots: list[Shot], num_frames: int) -> tuple[VideoRow, np.ndarray]:
    """Chooses the frames [T, H, W, 3] and notes the video's facts, shots and their times."""
    info, times_s = video.info, video.timestamps_s
    frames, indices = video.pool.get(sample_frames(shots, times_s, num_frames, candidates=video.pool.indices))
    ends_s = [float(times_s[shot.end]) if shot.end < len(times_s) else info.duration_s for shot in shots]
    shot_starts = np.array([shot.start for shot in shots])
    row = replace(
        row,
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
        shots=[[shot.start, shot.end] for shot in shots],
        shots_s=[[float(times_s[shot.start]), end_s] for shot, end_s in zip(shots, ends_s)],
        kept_frames=indices.tolist(),
        kept_timestamps_s=times_s[indices].tolist(),
        kept_shot_index=(np.searchsorted(shot_starts, indices, side="right") - 1).clip(0).tolist(),
    )
    return row, frames
