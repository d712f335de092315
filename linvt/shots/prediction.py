"""The loop of every detector whose network looks at windows of frames."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from linvt.shots.windows import Windowing


def predict_in_windows(
    network: Callable[[torch.Tensor], torch.Tensor],
    chunks: Iterable[np.ndarray],
    windowing: Windowing,
    *,
    device: str,
) -> np.ndarray:
    """float32 [F]: the probabilities of a video's frames, which come in chunks uint8 [n, 27, 48, 3].

    network: frames uint8 [1, T, 27, 48, 3] -> logits [1, T]. It sees one window at a time, so the bits of a window's
    result depend neither on the chunks nor on the other windows.
    """
    probabilities = [np.zeros(0, np.float32)]
    context = windowing.context
    with torch.inference_mode():
        for window, kept in windowing.windows(map(_checked, chunks)):
            logits = network(torch.from_numpy(window)[None].to(device))
            probabilities.append(torch.sigmoid(logits[0, context : context + kept]).cpu().numpy())
    return np.concatenate(probabilities)


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.shape[1:] != (27, 48, 3) or len(frames) == 0:
        raise ValueError(f"frames must be uint8 [F >= 1, 27, 48, 3], got {frames.dtype} {list(frames.shape)}")
    return frames
