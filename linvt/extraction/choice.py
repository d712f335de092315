"""Which frames stand for an input: a pure function of what its row says, so that it can be asked again at any time."""

import math
from dataclasses import replace

import numpy as np

from linvt.extraction.identity import FeatureSpec
from linvt.extraction.rows import VideoRow
from linvt.sampling import sample_frames
from linvt.shots import Shot, shots_from_probabilities


def choose_frames(row: VideoRow, spec: FeatureSpec) -> VideoRow:
    """The row of a decoded input with its shots and kept frames.

    It must have its duration and, of every frame, boundary probability and time, and the candidates.
    """
    assert row.duration_s is not None
    times_s = np.asarray(row.timestamps_s, np.float64)
    # As the detector gave them: a threshold compares otherwise with the same numbers in another precision.
    shots = shots_from_probabilities(np.asarray(row.boundary_probabilities, np.float32), spec.shot_threshold)
    indices = _sampled(shots, times_s, row, spec)
    ends_s = [float(times_s[shot.end]) if shot.end < len(times_s) else row.duration_s for shot in shots]
    shot_starts = np.array([shot.start for shot in shots])
    return replace(
        row,
        shots=[[shot.start, shot.end] for shot in shots],
        shots_s=[[float(times_s[shot.start]), end_s] for shot, end_s in zip(shots, ends_s)],
        kept_frames=indices.tolist(),
        kept_timestamps_s=times_s[indices].tolist(),
        kept_shot_index=(np.searchsorted(shot_starts, indices, side="right") - 1).clip(0).tolist(),
    )


def _sampled(shots: list[Shot], times_s: np.ndarray, row: VideoRow, spec: FeatureSpec) -> np.ndarray:
    """Which frames to keep, int64 [T]."""
    budget = spec.num_frames
    if spec.sampling == "fps":
        assert spec.fps is not None
        assert row.duration_s is not None
        # The tolerance is for durations that are a frame's rounding above a whole number of frames.
        budget = min(budget, max(1, math.ceil(row.duration_s * spec.fps - 1e-6)))
    if spec.sampling != "shots":
        shots = [Shot(0, len(times_s))]
    return sample_frames(shots, times_s, budget, candidates=np.asarray(row.candidate_frames, np.int64))
