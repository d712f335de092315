"""MTP, multi-scale temporal pooling (paper sec. 3.2): averages in overlapping windows along the selected tokens.

Shape legend: B videos, K selected tokens, P pooled tokens, C hidden size, w window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_starts(length: int, window: int) -> int:
    """How many windows cover `length` tokens at a stride of half a window (one, for windows of one or two)."""
    stride = max(1, window // 2)
    return max(1, -(-(length - window) // stride) + 1)


def unfold(values_BK: Tensor, window: int) -> Tensor:
    """[B, P, w]: the windows of a sequence, zero-padded behind its end."""
    stride = max(1, window // 2)
    count = window_starts(values_BK.shape[1], window)
    padded = F.pad(values_BK, (0, (count - 1) * stride + window - values_BK.shape[1]))
    return padded.unfold(1, window, stride)


def window_weights(weights_BK: Tensor, window: int) -> Tensor:
    """[B, P, w]: each window's weights, zero for windows that only padding makes room for.

    Valid tokens come first, so a row of n of them has the windows that n tokens alone would have.
    """
    weights_BPw = unfold(weights_BK, window)
    stride = max(1, window // 2)
    valid_B = (weights_BK > 0).sum(-1)
    counts_B = ((valid_B - window).clamp(min=0) + stride - 1) // stride + 1
    exists_BP = torch.arange(weights_BPw.shape[1], device=weights_BK.device) < counts_B[:, None]
    return weights_BPw * exists_BP[..., None]


def pool(values_BKC: Tensor, weights_BK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Weighted window means [B, P, C] and the sum of weights in each window [B, P].

    v̄ = Σ s·v / Σ s: every pooled token is a convex combination of the selected ones, the same for every channel. A
    window without weight (all padding) pools to zero and must be masked by its weight sum of zero.
    """
    if window == 1:
        return values_BKC * (weights_BK > 0).to(values_BKC.dtype)[..., None], weights_BK
    weights_BPw = window_weights(weights_BK, window)
    sums_BP = weights_BPw.sum(-1)
    shares_BPw = weights_BPw / sums_BP.clamp(min=torch.finfo(sums_BP.dtype).tiny)[..., None]
    stride = max(1, window // 2)
    count = weights_BPw.shape[1]
    padded = F.pad(values_BKC, (0, 0, 0, (count - 1) * stride + window - values_BKC.shape[1]))
    # A sum of w shifted slices: no [B, P, w, C] tensor is made.
    pooled_BPC = torch.zeros_like(padded[:, :count])
    for offset in range(window):
        slice_BPC = padded[:, offset : offset + (count - 1) * stride + 1 : stride]
        pooled_BPC = pooled_BPC + shares_BPw[..., offset, None].to(padded.dtype) * slice_BPC
    return pooled_BPC, sums_BP


def unpool(map_BQP: Tensor, weights_BK: Tensor, window: int) -> Tensor:
    """Carries weights over pooled tokens [B, Q, P] back to weights over selected tokens [B, Q, K]."""
    if window == 1:
        return map_BQP
    k = weights_BK.shape[1]
    stride = max(1, window // 2)
    weights_BPw = window_weights(weights_BK, window)
    shares_BPw = weights_BPw / weights_BPw.sum(-1, keepdim=True).clamp(min=torch.finfo(weights_BK.dtype).tiny)
    count = weights_BPw.shape[1]
    out = map_BQP.new_zeros(*map_BQP.shape[:2], (count - 1) * stride + window)
    for offset in range(window):
        out[..., offset : offset + (count - 1) * stride + 1 : stride] += map_BQP * shares_BPw[:, None, :, offset]
    return out[..., :k]


def run_means(weights_BK: Tensor, num_runs: int) -> Tensor:
    """[B, num_runs, K]: weighted means over equal runs of each row's valid tokens, as a map with rows that sum to 1.

    Runs overlap by a token where the number of valid tokens is no multiple of `num_runs`, and none is empty.
    """
    valid_B = (weights_BK > 0).sum(-1)
    run_R = torch.arange(num_runs, device=weights_BK.device)
    starts_BR = run_R * valid_B[:, None] // num_runs
    ends_BR = ((run_R + 1) * valid_B[:, None] + num_runs - 1) // num_runs
    place_K = torch.arange(weights_BK.shape[1], device=weights_BK.device)
    inside_BRK = (place_K >= starts_BR[..., None]) & (place_K < ends_BR[..., None])
    shares_BRK = weights_BK[:, None, :] * inside_BRK
    return shares_BRK / shares_BRK.sum(-1, keepdim=True)
