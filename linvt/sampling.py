"""Which frames stand for a video: a budget spread over its shots. Pure functions of shots and timestamps."""

from collections.abc import Sequence

import numpy as np

from linvt.shots.boundaries import Shot

# Times are counted in whole nanoseconds, so that ties are ties whatever the rounding of the seconds they came in.
_NS = 1_000_000_000
_ROUNDING_NS = 1_000


def sample_frames(
    shots: Sequence[Shot],
    timestamps_s: np.ndarray,
    num_frames: int,
    *,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
    """At most `num_frames` frame indices, int64, increasing and distinct.

    - A video with no more frames than the budget gives all of them.
    - While there are no more shots than frames in the budget, each shot gets one, and the rest go by duration (largest
      remainder; equal remainders to the earlier shot; no shot gets more than it has).
    - A shot's k frames are those on screen at the centres of its k equal sub-intervals of time.
    - With more shots than the budget, shots at equal distances in their order give one frame each.
    - Frames in no shot (inside a gradual transition) are not chosen, unless the video gives all its frames.

    Args:
        shots: increasing and disjoint, at least one, within the video.
        timestamps_s: float [F], strictly increasing: the time at which each frame appears.
        num_frames: the budget, at least 1.
        candidates: increasing indices of the frames that can still be had (a `CandidatePool`'s), default all. Each
            stands for the time up to half-way to the next one, and is never chosen for another shot than its own; a
            shot without candidates gives no frame.
    """
    available = np.arange(len(timestamps_s)) if candidates is None else np.asarray(candidates, dtype=np.int64)
    _validate(shots, timestamps_s, num_frames, available)
    if len(available) <= num_frames:
        return available.astype(np.int64)

    edges_ns = _frame_edges_ns(timestamps_s)
    members = [available[slice(*np.searchsorted(available, (shot.start, shot.end)))] for shot in shots]
    filled = [(shot, frames) for shot, frames in zip(shots, members) if len(frames)]
    if not filled:
        return available[_spread(len(available), num_frames)]
    if len(filled) > num_frames:
        filled = [filled[position] for position in _spread(len(filled), num_frames)]

    durations_ns = np.array([edges_ns[shot.end] - edges_ns[shot.start] for shot, _ in filled])
    counts = _allocate(durations_ns, np.array([len(frames) for _, frames in filled]), num_frames)
    chosen = [_centres(shot, frames, count, edges_ns) for (shot, frames), count in zip(filled, counts)]
    return np.concatenate(chosen)


def _validate(shots: Sequence[Shot], timestamps_s: np.ndarray, num_frames: int, available: np.ndarray) -> None:
    total = len(timestamps_s)
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if total == 0 or (np.diff(timestamps_s) <= 0).any():
        raise ValueError(f"timestamps_s must be non-empty and strictly increasing, got {timestamps_s}")
    bounds = np.array([(shot.start, shot.end) for shot in shots]).reshape(-1)
    disjoint = (np.diff(bounds) >= 0).all() and (bounds[::2] < bounds[1::2]).all()
    if len(bounds) == 0 or bounds[0] < 0 or bounds[-1] > total or not disjoint:
        raise ValueError(f"shots must be non-empty, increasing, disjoint and within [0, {total}), got {list(shots)}")
    if len(available) == 0 or available[0] < 0 or available[-1] >= total or (np.diff(available) <= 0).any():
        raise ValueError(f"candidates must be increasing frame indices within [0, {total}), got {available}")


def _frame_edges_ns(timestamps_s: np.ndarray) -> np.ndarray:
    """[F + 1]: frame i is on screen from edge i to edge i + 1; the last one as long as the one before it (or 1 s)."""
    starts_ns = np.rint(np.asarray(timestamps_s) * _NS).astype(np.int64)
    last_ns = starts_ns[-1] - starts_ns[-2] if len(starts_ns) > 1 else _NS
    return np.append(starts_ns, starts_ns[-1] + last_ns)


def _spread(size: int, count: int) -> np.ndarray:
    """`count` of `size` positions (count <= size), at the centres of equal parts."""
    return (2 * np.arange(count) + 1) * size // (2 * count)


def _allocate(durations: np.ndarray, capacities: np.ndarray, budget: int) -> np.ndarray:
    """Frames per shot: one each, the rest in proportion to duration by largest remainder, none above its capacity.

    What full shots cannot take goes to the others by the same rule.
    """
    counts = np.ones(len(durations), dtype=np.int64)
    rest = min(budget, int(capacities.sum())) - len(counts)
    while rest > 0:
        open_shots = np.flatnonzero(counts < capacities)
        granted, remainders = np.divmod(rest * durations[open_shots], durations[open_shots].sum())
        first_served = np.argsort(-remainders, kind="stable")
        granted[first_served[: rest - granted.sum()]] += 1
        before = counts.sum()
        counts[open_shots] = np.minimum(counts[open_shots] + granted, capacities[open_shots])
        rest -= int(counts.sum() - before)
    return counts


def _centres(shot: Shot, frames: np.ndarray, count: int, edges_ns: np.ndarray) -> np.ndarray:
    """`count` of a shot's available `frames`: on screen at the centres of `count` equal parts of the shot."""
    order = np.arange(count)
    start_ns, end_ns = edges_ns[shot.start], edges_ns[shot.end]
    targets_ns = start_ns + (2 * order + 1) * (end_ns - start_ns) // (2 * count) + _ROUNDING_NS
    # Neighbours share the time between the end of one and the start of the next: nothing, if none is missing between.
    switches_ns = (edges_ns[frames[:-1] + 1] + edges_ns[frames[1:]]) // 2
    positions = np.searchsorted(switches_ns, targets_ns, side="right")
    # A frame on screen for long can be hit twice: move apart, to the next one free, while staying inside the shot.
    positions = np.maximum.accumulate(positions - order) + order
    return frames[np.minimum(positions, len(frames) - count + order)]
