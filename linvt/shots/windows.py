"""How a video is cut into windows for a detector that looks at a fixed stretch of time around each frame.

Every decision here follows from the number of frames alone, so a video's probabilities don't depend on what else is
being processed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Windowing:
    """Windows of `length` frames that overlap by twice `context`; a video's last window is only as long as needed."""

    length: int = 300
    context: int = 25
    """Frames at each side of a window that only inform its predictions."""
    length_step: int = 10
    """The last window's length is rounded up to a multiple of this, so that few lengths occur."""

    def windows(self, chunks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
        """(window [L, …], how many predictions to keep), in order; predictions to keep start at `context`.

        chunks: a video's frames [n, …] in any division; a window comes as soon as its frames are there, and no more
        than a window and a chunk are held. The video is padded as TransNetV2's reference does: `context` copies of the
        first frame before it, at least `context` copies of the last one after it.
        """
        step = self.length - 2 * self.context
        held, first, start = None, 0, 0  # frames first, first + 1, …; the next window predicts from start on
        for chunk in chunks:
            held = chunk if held is None else np.concatenate([held, chunk])
            while first + len(held) >= start - self.context + self._length(step):
                yield self._window(held, first, start, step), step
                start += step
                dropped = max(0, start - self.context - first)
                held, first = held[dropped:], first + dropped
        if held is None:
            return
        total = first + len(held)
        for rest in range(start, total, step):
            kept = min(step, total - rest)
            yield self._window(held, first, rest, kept), kept

    def _length(self, kept: int) -> int:
        return -(-(kept + 2 * self.context) // self.length_step) * self.length_step

    def _window(self, held: np.ndarray, first: int, start: int, kept: int) -> np.ndarray:
        at = np.arange(start - self.context, start - self.context + self._length(kept))
        return held[(at - first).clip(0, len(held) - 1)]
