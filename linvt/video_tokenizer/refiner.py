"""SVR, spatio-temporal visual token refiner (paper sec. 3.2): one significance score per token.

The tokens themselves are never changed; only the stream that scores them is.

Shape legend: B videos, T frames, N tokens a frame, C hidden size, K selected tokens, S = T·N.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from linvt.video_tokenizer.attention import Attention
from linvt.video_tokenizer.config import LinVTConfig

_GOLDEN_RATIO = 0.6180339887498949


class Refiner(nn.Module):
    """L layers of self-attention within each frame, a scoring head, then attention across time over score vectors."""

    def __init__(self, config: LinVTConfig):
        super().__init__()
        c = config.hidden_size
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(config.num_layers))
        self.layers = nn.ModuleList(Attention(c, config.num_heads) for _ in range(config.num_layers))
        self.head_norm = nn.LayerNorm(c)
        self.head = nn.Linear(c, 1)
        # The paper attends across time over whole score vectors. Scalar projections leave the weights independent of
        # the number of patches, so one module serves any grid and unordered token sets.
        self.temporal = nn.Parameter(torch.tensor([1.0, 1.0, 0.0]))
        # An untrained scorer must not throw tokens away blindly: all scores start equal.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens_BTNC: Tensor, frame_mask_BT: Tensor) -> Tensor:
        """Significance logits z [B, T, N]; those of masked frames mean nothing."""
        b = tokens_BTNC.shape[0]
        stream = rearrange(tokens_BTNC, "b t n c -> (b t) n c")
        for norm, layer in zip(self.norms, self.layers):
            normed = norm(stream)
            stream = stream + layer(normed, normed)
        spatial_BTN = rearrange(self.head(self.head_norm(stream)), "(b t) n 1 -> b t n", b=b)
        query, key, gain = self.temporal
        similarity_BTT = torch.einsum("btn,bun->btu", query * spatial_BTN, key * spatial_BTN)
        similarity_BTT = similarity_BTT * spatial_BTN.shape[-1] ** -0.5
        similarity_BTT = similarity_BTT.masked_fill(~frame_mask_BT[:, None, :], float("-inf"))
        return spatial_BTN + gain * similarity_BTT.softmax(-1) @ spatial_BTN


def select_top_k(scores_BTN: Tensor, frame_mask_BT: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Indices [B, K] into T·N of the best valid tokens, in temporal order, and their validity [B, K].

    K = min(top_k, T·N); valid selections come first. Among equal scores the choice is spread evenly over the frames,
    and does not depend on where padded frames stand.
    """
    b, t, n = scores_BTN.shape
    valid_BS = frame_mask_BT[:, :, None].expand(b, t, n).reshape(b, t * n)
    k = min(top_k, t * n)
    if k == t * n:
        chosen_BK = torch.arange(t * n, device=scores_BTN.device).expand(b, -1)
    else:
        # A low-discrepancy sequence over valid tokens: any k of its smallest members are spread over all frames.
        rank_BS = valid_BS.long().cumsum(-1) - 1
        spread_BS = torch.frac(rank_BS.double() * _GOLDEN_RATIO)
        scores_BS = scores_BTN.detach().reshape(b, -1).double().masked_fill(~valid_BS, float("-inf"))
        # Two stable sorts: by spread, then by score, make a lexicographic order without an epsilon.
        by_spread = spread_BS.argsort(dim=-1, stable=True)
        by_score = scores_BS.gather(-1, by_spread).argsort(dim=-1, descending=True, stable=True)
        chosen_BK = by_spread.gather(-1, by_score)[:, :k]
    chosen_valid = valid_BS.gather(-1, chosen_BK)
    order = torch.where(chosen_valid, chosen_BK, chosen_BK + t * n).argsort(dim=-1)
    return chosen_BK.gather(-1, order), chosen_valid.gather(-1, order)
