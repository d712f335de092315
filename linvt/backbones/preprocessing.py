"""From decoded frames to what a vision tower takes, as the published image preprocessing does it.

Shape legend: T frames, H×W pixels of a decoded frame, S the tower's side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OPENAI_CLIP_MEAN, OPENAI_CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Squeeze:
    """Resizes a frame to S×S whatever its shape, with Pillow's bicubic filter, and normalises each channel."""

    side: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, frames: np.ndarray) -> Tensor:
        """float32 [T, 3, S, S] of uint8 RGB [T, H, W, 3]."""
        return normalise(squeezed(frames, self.side), self.mean, self.std)


def squeezed(frames: np.ndarray, side: int) -> np.ndarray:
    """uint8 [T, side, side, 3] of uint8 [T, H, W, 3], with Pillow's bicubic filter."""
    return np.stack([np.asarray(Image.fromarray(f).resize((side, side), Image.Resampling.BICUBIC)) for f in frames])


def normalise(frames: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 [T, 3, H, W] of uint8 [T, H, W, 3]: (value / 255 - mean) / std of each channel."""
    values = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
