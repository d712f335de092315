"""A bounded pool of frames from a stream of unknown length that still has a frame for nearly every shot.

Which frames the encoder wants is known only after the last one was seen (shots need the whole video), and by then the
first are gone. So the pool keeps, in bounded memory,
  - every frame, while they fit;
  - else the multiples of a stride, the smallest power of two that fits them into half of the pool; and in the other
    half the frames that stand most sharply against their predecessor: the first frames of shots, also of short ones
    in a long video that the stride would step over.
What is kept depends on the frames alone (`tests/video/test_candidates.py` has it as a closed formula).
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

FrameT = TypeVar("FrameT")


class CandidatePool:
    """Frames uint8 [H, W, 3] at encoder size, by their index in the video.

    indices: int64 [P], increasing.
    """

    def __init__(self, indices: Sequence[int] | np.ndarray, frames: Sequence[np.ndarray]) -> None:
        assert len(indices) == len(frames) > 0
        self.indices = np.asarray(indices, dtype=np.int64)
        assert (np.diff(self.indices) > 0).all()
        self._frames = frames

    def __len__(self) -> int:
        return len(self.indices)

    def get(self, frame_indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The candidates nearest to `frame_indices`: (frames uint8 [n, H, W, 3], their actual indices int64 [n]).

        The actual indices are increasing and distinct, so n is below len(frame_indices) where two wanted frames have
        one nearest candidate. Of two candidates equally near, the earlier is taken. To lose none, and to stay inside
        a shot, choose among `pool.indices` in the first place (`sample_frames(..., candidates=pool.indices)`).
        """
        wanted = np.asarray(frame_indices, dtype=np.int64)
        if wanted.size == 0:
            raise ValueError("frame_indices is empty: ask for at least one frame")
        middles = (
            self.indices[:-1] + self.indices[1:]
        ) // 2  # the last index that is nearer to the left one, or as near
        positions = np.unique(np.searchsorted(middles, wanted, side="left"))
        return np.stack([self._frames[position] for position in positions]), self.indices[positions]


class CandidateCollector(Generic[FrameT]):
    """Builds a CandidatePool while frames stream by; holds at most `max_candidates` frames and the latest one.

    `render` turns a decoded frame into its encoder-size picture; it is called only for frames that enter the pool.
    """

    def __init__(self, max_candidates: int, render: Callable[[FrameT], np.ndarray]) -> None:
        if max_candidates < 1:
            raise ValueError(f"max_candidates must be at least 1, got {max_candidates}")
        self._max_candidates = max_candidates
        self._max_jumps = max_candidates // 2
        self._render = render
        self._stride = 1
        self._regular: list[tuple[int, int, np.ndarray]] = []  # (sharpness, -index, picture), by increasing index
        self._jumps: list[tuple[int, int, np.ndarray]] = []  # a heap: the dullest first, of equals the latest
        self._latest: tuple[int, FrameT] | None = None
        self._thumbnail: np.ndarray | None = None
        self._jump = self._jump_before = 0

    def add(self, index: int, frame: FrameT, thumbnail: np.ndarray) -> None:
        """Offers the next frame. `thumbnail` (uint8, any one shape) is what jumps between frames are measured on."""
        # Integers, so that no rounding decides which frame is kept.
        jump = 0
        if self._thumbnail is not None:
            jump = int(np.abs(thumbnail.astype(np.int16) - self._thumbnail).sum(dtype=np.int64))
        self._settle_latest(jump)
        self._latest, self._thumbnail = (index, frame), thumbnail
        self._jump_before, self._jump = self._jump, jump

    def finish(self) -> CandidatePool:
        """The pool of everything offered, which must be at least one frame."""
        self._settle_latest(0)
        self._latest = None
        kept = {-negative_index: picture for _, negative_index, picture in self._regular + self._jumps}
        indices = sorted(kept)
        return CandidatePool(indices, [kept[index] for index in indices])

    def _settle_latest(self, next_jump: int) -> None:
        """Decides on the latest frame, now that the jump after it is known: a cut is one jump among small ones, while
        fast motion and flashes are jumps in a row."""
        if self._latest is None:
            return
        index, frame = self._latest
        sharpness = self._jump - max(self._jump_before, next_jump)
        if index % self._stride == 0:
            self._regular.append((sharpness, -index, self._render(frame)))
            self._widen_stride()
        elif len(self._jumps) < self._max_jumps:
            heapq.heappush(self._jumps, (sharpness, -index, self._render(frame)))
        elif self._max_jumps and (sharpness, -index) > self._jumps[0][:2]:
            heapq.heapreplace(self._jumps, (sharpness, -index, self._render(frame)))

    def _widen_stride(self) -> None:
        if len(self._regular) <= (
            self._max_candidates if self._stride == 1 else self._max_candidates - self._max_jumps
        ):
            return
        while len(self._regular) > self._max_candidates - self._max_jumps:
            self._stride *= 2
            demoted = [entry for entry in self._regular if -entry[1] % self._stride]
            self._regular = [entry for entry in self._regular if -entry[1] % self._stride == 0]
            for entry in demoted:
                heapq.heappush(self._jumps, entry)
                if len(self._jumps) > self._max_jumps:
                    heapq.heappop(self._jumps)
