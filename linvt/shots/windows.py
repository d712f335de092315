"""How a video is cut into windows for a detector that looks at a fixed stretch of time around each frame.

Every decision here follows from the number of frames alone, so a video's probabilities don't depend on what else is
being processed.
"""

from collections.abc import Iterator
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

    def windows(self, frames: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """(window [L, …], how many predictions to keep), in order; predictions to keep start at `context`.

        The video is padded as TransNetV2's reference does: `context` copies of the first frame before it, at least
        `context` copies of the last one after it.
        """
        step = self.length - 2 * self.context
        for start in range(0, len(frames), step):
            kept = min(step, len(frames) - start)
            length = -(-(kept + 2 * self.context) // self.length_step) * self.length_step
            at = np.arange(start - self.context, start - self.context + length)
            yield frames[at.clip(0, len(frames) - 1)], kept
