"""The learning rate of a step: linear warm-up, then half a cosine. A pure function, so a resumed run needs no state."""

import math


def learning_rate_at(
    step: int, *, num_steps: int, warmup_steps: int, learning_rate: float, min_learning_rate: float
) -> float:
    """The learning rate of step `step` (from 0) of `num_steps`."""
    warmup_steps = min(warmup_steps, num_steps)
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return min_learning_rate + (learning_rate - min_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))
