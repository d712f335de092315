"""A frame resized whole into a square, with the rest of the square padded: Molmo's image preprocessing.

Shape legend: T frames, H×W pixels of a decoded frame, S the tower's side in pixels, P patches a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Letterbox:
    """Resizes a frame, its aspect ratio kept, until it just fits S×S, and pads it to S×S with black on both sides."""

    side: int
    patch: int
    """Side of the tower's patches in pixels."""
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, frames: np.ndarray) -> Tensor:
        """float32 [T, 3, S, S] of uint8 RGB [T, H, W, 3]: padded, then normalised, so padding is not zero."""
        height, width = self._size(*frames.shape[1:3])
        values = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        resized = F.interpolate(values, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
        padded = F.pad(resized, self._padding(height, width))
        return (padded - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def image_share(self, height: int, width: int) -> Tensor:
        """float32 [P²]: how much of each patch shows a frame of H×W pixels, 0 where it is padding only."""
        height, width = self._size(height, width)
        is_image_SS = F.pad(torch.ones(height, width), self._padding(height, width))
        return reduce(is_image_SS, "(h i) (w j) -> (h w)", "mean", i=self.patch, j=self.patch)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        # In single precision, as the model was trained: its rounding decides whether a row of pixels is cut off.
        scale = min(np.float32(self.side) / np.float32(height), np.float32(self.side) / np.float32(width))
        return max(1, int(np.float32(height) * scale)), max(1, int(np.float32(width) * scale))

    def _padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels on the left, right, top and bottom; of an odd number, the larger half on the right and bottom."""
        left, top = (self.side - width) // 2, (self.side - height) // 2
        return left, self.side - width - left, top, self.side - height - top
