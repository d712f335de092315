"""What the pictures and the page are drawn from: plain arrays, no model.

Shape legend: T frames, N tokens a frame, R answer tokens, P shots, H×W pixels.
"""

import itertools
from dataclasses import dataclass

import numpy as np

MARKED_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EvidenceView:
    """The evidence of one answer about one video."""

    video: str
    model: str
    question: str
    answer: str
    timestamps_s: np.ndarray
    """float64 [T], increasing."""
    duration_s: float
    shots_s: np.ndarray
    """float64 [P, 2]."""
    shot_index: np.ndarray
    """int64 [T]."""
    weights: np.ndarray
    """float [T, N], sums to 1."""
    held: np.ndarray
    """bool [T, N]: whether any video token holds the frame token; the others were left out by the refiner."""
    answer_tokens: tuple[str, ...] = ()
    token_weights: np.ndarray | None = None
    """float [R, T, N], where asked for; each sums to 1."""
    grid: tuple[int, int] | None
    """(rows, columns) of a frame's tokens; None where they are an unordered set."""
    pictures: np.ndarray | None
    """uint8 [T, H, W, 3], or None where the video's file is not at hand."""

    @property
    def frame_weights(self) -> np.ndarray:
        """[T]"""
        return self.weights.sum(-1)

    @property
    def shot_weights(self) -> np.ndarray:
        """[P]"""
        return np.bincount(self.shot_index, self.frame_weights, minlength=len(self.shots_s))

    @property
    def shot_frames(self) -> np.ndarray:
        """[P]: the share of the frames that lie in each shot, which is what an even evidence would give it."""
        return np.bincount(self.shot_index, minlength=len(self.shots_s)) / len(self.timestamps_s)

    @property
    def marked(self) -> np.ndarray:
        """bool [T, N]: the fewest frame tokens that together have MARKED_SHARE of the weight."""
        order = np.argsort(-self.weights, axis=None, kind="stable")
        before = np.cumsum(self.weights.flat[order]) - self.weights.flat[order]
        marked = np.zeros(self.weights.size, bool)
        marked[order[before < MARKED_SHARE * self.weights.sum()]] = True
        return marked.reshape(self.weights.shape)

    @property
    def end_s(self) -> float:
        """Where the time axis ends."""
        return max(float(self.duration_s), float(self.timestamps_s[-1]), 1e-3)


def shown_frames(weights_T: np.ndarray, count: int) -> list[int]:
    """At most `count` frames for a picture, in time: all, or the heaviest of each of `count` equal stretches."""
    if len(weights_T) <= count:
        return list(range(len(weights_T)))
    ends = [round(i * len(weights_T) / count) for i in range(count + 1)]
    return [start + int(np.argmax(weights_T[start:end])) for start, end in itertools.pairwise(ends)]
