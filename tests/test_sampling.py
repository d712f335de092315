"""Sampling: what always holds, and the rule on small cases."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linvt.sampling import sample_frames
from linvt.shots import Shot


@st.composite
def videos(draw) -> tuple[list[Shot], np.ndarray]:
    """Uneven timestamps, and shots that touch or leave transition frames between them."""
    gaps_ms = draw(st.lists(st.integers(1, 2000), min_size=1, max_size=80))
    timestamps_s = np.cumsum(gaps_ms) / 1000
    bounds = sorted(draw(st.sets(st.integers(0, len(gaps_ms)), min_size=2, max_size=20)))
    touching = draw(st.booleans())
    pairs = itertools.pairwise(bounds) if touching else zip(bounds[::2], bounds[1::2])
    return [Shot(start, end) for start, end in pairs], timestamps_s


def inside(shot: Shot, frames: np.ndarray) -> np.ndarray:
    return frames[(frames >= shot.start) & (frames < shot.end)]


@settings(deadline=None)
@given(videos(), st.integers(1, 40))
def test_always(video: tuple[list[Shot], np.ndarray], budget: int) -> None:
    shots, timestamps_s = video
    frames = sample_frames(shots, timestamps_s, budget)
    total, in_shots = len(timestamps_s), sum(len(shot) for shot in shots)
    assert frames.dtype == np.int64
    assert (np.diff(frames) > 0).all()
    if total <= budget:
        assert frames.tolist() == list(range(total))
        return
    per_shot = [len(inside(shot, frames)) for shot in shots]
    assert sum(per_shot) == len(frames) == min(budget, in_shots)  # nothing from transitions, the budget used up
    if len(shots) <= budget:
        assert min(per_shot) >= 1
    else:
        assert max(per_shot) == 1
    np.testing.assert_array_equal(frames, sample_frames(shots, timestamps_s, budget))


@settings(deadline=None)
@given(videos(), st.integers(1, 40), st.data())
def test_with_candidates(video: tuple[list[Shot], np.ndarray], budget: int, data: st.DataObject) -> None:
    shots, timestamps_s = video
    candidates = np.array(sorted(data.draw(st.sets(st.integers(0, len(timestamps_s) - 1), min_size=1))))
    frames = sample_frames(shots, timestamps_s, budget, candidates=candidates)
    assert set(frames.tolist()) <= set(candidates.tolist())
    assert (np.diff(frames) > 0).all()
    filled = [shot for shot in shots if len(inside(shot, candidates))]
    if len(candidates) <= budget:
        assert frames.tolist() == candidates.tolist()
    elif filled and len(filled) <= budget:
        assert all(len(inside(shot, frames)) for shot in filled)


@settings(deadline=None)
@given(videos(), st.integers(1, 40))
def test_all_frames_as_candidates_change_nothing(video: tuple[list[Shot], np.ndarray], budget: int) -> None:
    shots, timestamps_s = video
    everything = np.arange(len(timestamps_s))
    np.testing.assert_array_equal(
        sample_frames(shots, timestamps_s, budget), sample_frames(shots, timestamps_s, budget, candidates=everything)
    )


@settings(deadline=None)
@given(st.lists(st.integers(20, 60), min_size=1, max_size=6), st.integers(6, 20))
def test_frames_go_by_duration(lengths: list[int], budget: int) -> None:
    """A shot's count is one plus its share of the rest, rounded down or up; no longer shot gets fewer."""
    ends = np.cumsum(lengths)
    shots = [Shot(int(end) - length, int(end)) for end, length in zip(ends, lengths)]
    frames = sample_frames(shots, np.arange(ends[-1]) / 25, budget)
    counts = [len(inside(shot, frames)) for shot in shots]
    for length, count in zip(lengths, counts):
        share = (budget - len(shots)) * length / ends[-1]
        assert np.floor(share) <= count - 1 <= np.ceil(share)
    by_length = sorted(zip(lengths, counts))
    assert all(shorter[1] <= longer[1] for shorter, longer in itertools.pairwise(by_length) if shorter[0] < longer[0])


@settings(deadline=None)
@given(videos(), st.integers(1, 40), st.integers(1, 1000))
def test_only_relative_time_matters(video: tuple[list[Shot], np.ndarray], budget: int, factor: int) -> None:
    """Played slower, or later, the same frames stand for the video."""
    shots, timestamps_s = video
    expected = sample_frames(shots, np.rint(timestamps_s * 1000), budget)
    moved = np.rint(timestamps_s * 1000) * factor + 17
    np.testing.assert_array_equal(sample_frames(shots, moved, budget), expected)


AT_25 = np.arange(100) / 25
AT_30 = np.arange(90) / 30


@pytest.mark.parametrize(
    ("shots", "timestamps_s", "budget", "expected"),
    [
        ([Shot(0, 100)], AT_25, 5, [10, 30, 50, 70, 90]),
        ([Shot(0, 90)], AT_30, 3, [15, 45, 75]),
        ([Shot(0, 10)], AT_30[:10], 1, [5]),  # 1/30 s is no whole number of anything: the centre holds
        ([Shot(0, 100)], AT_25, 1, [50]),
        ([Shot(0, 20), Shot(20, 100)], AT_25, 5, [5, 15, 33, 60, 86]),  # 1 + 0.6 and 1 + 2.4 frames
        ([Shot(i * 5, i * 5 + 5) for i in range(20)], AT_25, 4, [12, 37, 62, 87]),  # every fifth shot
        ([Shot(0, 2), Shot(2, 12)], AT_25[:12], 11, [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]),  # nearly all
        # On screen at the centre, however long the frames before and after are.
        ([Shot(0, 4)], np.array([0.0, 0.1, 9.0, 9.1]), 1, [1]),
        # A frame on screen for most of the time is given once; the others move to their neighbours.
        ([Shot(0, 4)], np.array([0.0, 0.1, 9.0, 9.1]), 2, [1, 2]),
    ],
)
def test_rule(shots: list[Shot], timestamps_s: np.ndarray, budget: int, expected: list[int]) -> None:
    assert sample_frames(shots, timestamps_s, budget).tolist() == expected


def test_equal_shots_share_equally_whatever_the_rounding_of_their_times() -> None:
    shots = [Shot(i * 7, i * 7 + 7) for i in range(9)]
    frames = sample_frames(shots, np.arange(63) / 29.97, 18)
    assert [len(inside(shot, frames)) for shot in shots] == [2] * 9


def test_candidates_stay_in_their_shot() -> None:
    """The nearest candidate to a short shot's centre lies in the next shot: it is not taken for it."""
    shots = [Shot(0, 50), Shot(50, 58), Shot(58, 100)]
    candidates = np.array([0, 20, 40, 50, 59, 70, 90])
    frames = sample_frames(shots, AT_25, 3, candidates=candidates)
    assert frames.tolist() == [20, 50, 70]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"timestamps_s": np.array([0.0, 0.0, 1.0])}, "strictly increasing"),
        ({"timestamps_s": np.array([])}, "non-empty"),
        ({"shots": []}, "shots must be non-empty"),
        ({"shots": [Shot(0, 4)]}, r"within \[0, 3\)"),
        ({"shots": [Shot(0, 2), Shot(1, 3)]}, "disjoint"),
        ({"shots": [Shot(1, 1)]}, "non-empty, increasing"),
        ({"candidates": np.array([3])}, "candidates must be increasing frame indices"),
        ({"candidates": np.array([], int)}, "candidates must be increasing frame indices"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    good = {"shots": [Shot(0, 3)], "timestamps_s": np.array([0.0, 1.0, 2.0]), "num_frames": 2}
    with pytest.raises(ValueError, match=message):
        sample_frames(**{**good, **arguments})
