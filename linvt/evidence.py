"""Which moments, shots and patches an answer came from.

The map W is exact: it says how much of each frame token every video token holds (paper sec. 3.2: the aggregation is
linear). How much the answer used each video token is measured by integrated gradients: the gradient of the answer's
log-probability, averaged on the way from video tokens that say nothing (all of them the mean) to those the LLM saw.
What is attributed to video tokens passes through W to frame tokens without loss:

    gain of frame token s = Σ_q W_qs · ḡ_q · (v_s − mean),    Σ_s gain_s = log p(answer | video) − log p(answer | mean)

Its positive part, normalised, is the evidence. docs/evidence.md has the reasons and the deletion test.

Shape legend: R answer tokens, Q video tokens, T frames, N tokens a frame, S = T·N, P shots, C hidden size.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

LogProbs = Callable[[Tensor], Tensor]
"""Video tokens [Q, C] -> [R], the log-probability in nats of every answer token given those before it."""

STEPS = 8


def integrated_gradients(
    log_probs: LogProbs, tokens: Tensor, *, per_answer_token: bool = False, steps: int = STEPS
) -> Tensor:
    """ḡ, float32 [1, Q, C], or [R, Q, C] per answer token: the mean gradient on the way from the mean to `tokens`.

    `tokens` [Q, C] are what the LLM saw. Costs `steps` forward and as many backward passes (R times as many backward
    passes per answer token), one after the other: memory is that of one.
    """
    tokens = tokens.detach()
    mean_C = tokens.float().mean(0).to(tokens.dtype)
    gradients: list[Tensor] = []
    for step in range(steps):
        share = (step + 0.5) / steps
        leaf_QC = torch.lerp(mean_C.expand_as(tokens), tokens, share).requires_grad_(True)
        with torch.enable_grad():
            log_probs_R = log_probs(leaf_QC)
            targets = log_probs_R.unbind() if per_answer_token else (log_probs_R.sum(),)
            rows = [torch.autograd.grad(target, leaf_QC, retain_graph=True)[0].float() for target in targets]
        gradients.append(torch.stack(rows) if rows else tokens.new_zeros(0, *tokens.shape, dtype=torch.float32))
    return torch.stack(gradients).mean(0)


def frame_token_gains(gradients: Tensor, tokens: Tensor, composed_map: Tensor, frame_tokens: Tensor) -> Tensor:
    """[R, T, N]: nats that each frame token adds to the log-probability of what `gradients` [R, Q, C] belong to.

    `tokens` [Q, C], `composed_map` [Q, T·N] (W) and `frame_tokens` [T, N, C] go together: W @ frame tokens = tokens.
    A frame token that LinVT left out gains nothing; one that speaks against the answer has a negative gain.
    """
    t, n, c = frame_tokens.shape
    if composed_map.shape != (len(tokens), t * n):
        raise ValueError(f"the map is {tuple(composed_map.shape)}, expected [Q, T·N] = {(len(tokens), t * n)}")
    said_SC = frame_tokens.reshape(t * n, c).float() - tokens.float().mean(0)
    # One answer token at a time: [R, S, C] would be large.
    gains = [((composed_map.float().T @ gradient_QC) * said_SC).sum(-1) for gradient_QC in gradients]
    return torch.stack(gains).reshape(-1, t, n) if gains else said_SC.new_zeros(0, t, n)


def as_weights(gains: Tensor, composed_map: Tensor) -> Tensor:
    """[..., T, N]: the positive part of gains [..., T, N], each normalised to sum to 1.

    Where nothing speaks for an answer, or nothing was answered, the weights are those of the map [Q, T·N] alone.
    """
    positive = gains.clamp(min=0)
    sums = positive.sum((-2, -1), keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(sums > tiny, positive / sums.clamp(min=tiny), map_weights(composed_map, gains.shape[-2]))


def map_weights(composed_map: Tensor, num_frames: int) -> Tensor:
    """[T, N]: how much of each frame token the video tokens hold, used or not; of a map [Q, T·N]."""
    return composed_map.float().mean(0).reshape(num_frames, -1)


def over_frames(weights: Tensor) -> Tensor:
    """[..., T]: each frame's share of weights [..., T, N]."""
    return weights.sum(-1)


def over_shots(weights: Tensor, shot_index: Sequence[int] | np.ndarray, num_shots: int) -> Tensor:
    """[..., P]: each shot's share of weights [..., T, N], given the shot of each frame. No frame, no weight."""
    frames_T = over_frames(weights)
    index_T = torch.as_tensor(shot_index, dtype=torch.long, device=weights.device)
    if len(index_T) != frames_T.shape[-1]:
        raise ValueError(f"{len(index_T)} shot indices for {frames_T.shape[-1]} frames; expected one for each")
    return frames_T.new_zeros(*frames_T.shape[:-1], num_shots).index_add(-1, index_T, frames_T)


def over_patches(weights: Tensor) -> Tensor:
    """[..., N]: the share of each place in the frame, over all frames, of weights [..., T, N]."""
    return weights.sum(-2)
