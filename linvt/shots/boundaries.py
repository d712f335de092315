"""Per-frame boundary probabilities -> shots, and found cuts or transitions against labelled ones."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class Shot:
    """Frames start, …, end - 1 of a video."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def shots_from_probabilities(probabilities: np.ndarray, threshold: float = 0.5) -> list[Shot]:
    """The shots of a video whose frame i ends a shot with probability `probabilities[i]` (float [F]).

    As TransNetV2's `predictions_to_scenes`, with half-open ends: a frame above the threshold is a transition frame. A
    shot runs through its first transition frame and the next one starts after the last, so a hard cut (one transition
    frame, the old shot's last) parts two shots that touch, and a gradual one leaves its other frames in no shot. A
    video in transition throughout is one shot. There is always at least one.
    """
    if probabilities.ndim != 1 or len(probabilities) == 0:
        raise ValueError(f"probabilities must be [F] with F >= 1, got shape {list(probabilities.shape)}")
    transition = np.asarray(probabilities) > threshold
    if transition.all():
        return [Shot(0, len(transition))]
    # Runs of frames that are in no transition, each with the transition frame after it, if there is one.
    edges = np.flatnonzero(np.diff(np.concatenate(([True], transition, [True])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    shots = [Shot(int(start), int(min(end + 1, len(transition)))) for start, end in zip(starts, ends)]
    return shots


@dataclass(frozen=True, kw_only=True, slots=True)
class CutMatch:
    """Found cuts against labelled ones, each the index of a shot's first frame."""

    matched: tuple[tuple[int, int], ...]
    """(labelled, found) pairs."""
    missed: tuple[int, ...]
    """Labelled cuts that were not found."""
    extra: tuple[int, ...]
    """Found cuts that are not labelled."""


def match_cuts(found: Sequence[int], labelled: Sequence[int], *, tolerance: int = 2) -> CutMatch:
    """Matches one to one, at most `tolerance` frames apart. Both sequences must be increasing.

    The number of matches is the greatest possible: each labelled cut takes the earliest found cut still free.
    """
    matched, missed, extra = [], [], []
    remaining = list(found)
    for label in labelled:
        while remaining and remaining[0] < label - tolerance:
            extra.append(remaining.pop(0))
        if remaining and remaining[0] <= label + tolerance:
            matched.append((label, remaining.pop(0)))
        else:
            missed.append(label)
    return CutMatch(matched=tuple(matched), missed=tuple(missed), extra=(*extra, *remaining))


@dataclass(frozen=True, kw_only=True, slots=True)
class TransitionScore:
    """Counts of transitions; those of several videos add up."""

    matched: int = 0
    missed: int = 0
    extra: int = 0

    def __add__(self, other: "TransitionScore") -> "TransitionScore":
        return TransitionScore(
            matched=self.matched + other.matched, missed=self.missed + other.missed, extra=self.extra + other.extra
        )

    @property
    def precision(self) -> float:
        """The share of the found transitions that are labelled; 0 if none was found."""
        return self.matched / max(1, self.matched + self.extra)

    @property
    def recall(self) -> float:
        """The share of the labelled transitions that were found; 0 if none is labelled."""
        return self.matched / max(1, self.matched + self.missed)

    @property
    def f1(self) -> float:
        return 2 * self.matched / max(1, 2 * self.matched + self.missed + self.extra)


def score_transitions(found: Sequence[Shot], labelled: Sequence[Shot], *, tolerance: int = 2) -> TransitionScore:
    """The rule of the published scores of TransNetV2 and AutoShot.

    Between two shots of a video lies a transition, from the end of one to the start of the next; a hard cut is a single
    point. A found and a labelled transition match, one to one, if they overlap or are at most `tolerance` frames apart.
    Shots must be in order and disjoint. The number of matches is the greatest possible.
    """
    waiting = _transitions(labelled)
    matched = extra = 0
    for start, end in _transitions(found):
        # What ended too early for this transition did so for all that follow.
        while waiting and waiting[0][1] + tolerance < start:
            waiting.popleft()
        if waiting and waiting[0][0] <= end + tolerance:
            waiting.popleft()
            matched += 1
        else:
            extra += 1
    return TransitionScore(matched=matched, missed=max(0, len(labelled) - 1) - matched, extra=extra)


def _transitions(shots: Sequence[Shot]) -> deque[tuple[int, int]]:
    return deque((before.end, after.start) for before, after in pairwise(shots))
