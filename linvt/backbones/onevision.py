"""LLaVA-OneVision's way with the frames of a video: fewer tokens than an image has.

Shape legend: T frames, P patches a side, C channels.
"""

import math

import torch.nn.functional as F
from torch import Tensor


def halve_grid(tokens: Tensor) -> Tensor:
    """[T, P², C] → [T, ⌈P/2⌉², C], bilinearly: what LLaVA-OneVision does to the frames of a video."""
    side = round(tokens.shape[1] ** 0.5)
    grid_TCPP = tokens.unflatten(1, (side, side)).movedim(-1, 1)
    half = math.ceil(side / 2)
    return F.interpolate(grid_TCPP, size=(half, half), mode="bilinear").flatten(2).mT
