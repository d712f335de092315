"""Evidence to draw, made by hand: shots, frames, patches and texts of any number."""

from typing import Any

import numpy as np

from linvt.visualization.view import EvidenceView


def make_view(
    *,
    num_frames: int = 16,
    num_shots: int = 4,
    grid: tuple[int, int] | None = (6, 6),
    size: tuple[int, int] | None = (96, 160),
    num_answer_tokens: int = 0,
    left_out: bool = False,
    seed: int = 0,
    **fields: Any,
) -> EvidenceView:
    """`size`: height and width of the pictures, or None for none."""
    random = np.random.default_rng(seed)
    num_tokens = grid[0] * grid[1] if grid else 30
    duration_s = 0.75 * num_frames
    ends = np.sort(np.append(random.uniform(0, duration_s, num_shots - 1), [0.0, duration_s]))
    timestamps_s = (np.arange(num_frames) + 0.5) * 0.75
    held = random.random((num_frames, num_tokens)) < 0.6 if left_out else np.ones((num_frames, num_tokens), bool)

    def weights(*shape: int) -> np.ndarray:
        values = random.random(shape) ** 12 * held
        return values / values.sum((-2, -1), keepdims=True)

    return EvidenceView(
        **{
            "video": "a/video.mp4",
            "model": "a-model",
            "question": "what color is the star ?",
            "answer": "red",
            "timestamps_s": timestamps_s,
            "duration_s": duration_s,
            "shots_s": np.stack([ends[:-1], ends[1:]], axis=1),
            "shot_index": np.searchsorted(ends[1:-1], timestamps_s, side="right"),
            "weights": weights(num_frames, num_tokens),
            "held": held,
            "answer_tokens": tuple(f"word{i}" for i in range(num_answer_tokens)),
            "token_weights": weights(num_answer_tokens, num_frames, num_tokens) if num_answer_tokens else None,
            "grid": grid,
            "pictures": random.integers(0, 256, (num_frames, *size, 3), dtype=np.uint8) if size else None,
        }
        | fields
    )
