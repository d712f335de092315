"""SVR, spatio-temporal visual token refiner (paper sec. 3.2): one significance score per token.

The tokens themselves are never changed; only the stream that scores them is.

Shape legend: B videos, T frames, N tokens a frame, F frames of a chunk, C hidden size, W refiner width, K selected
tokens, S = T·N.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from linvt.video_tokenizer.attention import Attention
from linvt.video_tokenizer.config import LinVTConfig

_GOLDEN_RATIO = 0.6180339887498949


class Refiner(nn.Module):
    """L layers of self-attention within each frame, a scoring head, then attention across time over score vectors.

    Frames are independent of each other until they are scored, so they go through the layers a chunk at a time:
    memory beyond the tokens does not grow with T, and with `gradient_checkpointing` neither does it in training.
    """

    def __init__(self, config: LinVTConfig):
        super().__init__()
        width = config.refiner_width or config.hidden_size
        # Our addition: a narrow scorer. At the paper's width there is nothing to project.
        self.down = nn.Linear(config.hidden_size, width) if config.refiner_width else nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.num_layers))
        self.layers = nn.ModuleList(Attention(width, config.num_heads) for _ in range(config.num_layers))
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        # The paper attends across time over whole score vectors. Scalar projections leave the weights independent of
        # the number of patches, so one module serves any grid and unordered token sets.
        self.temporal = nn.Parameter(torch.tensor([1.0, 1.0, 0.0]))
        # An untrained scorer must not throw tokens away blindly: all scores start equal.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.gradient_checkpointing = False

    def forward(self, tokens_BTNC: Tensor, frame_mask_BT: Tensor | None = None) -> Tensor:
        """Significance logits z [B, T, N]; those of masked frames mean nothing, and cost nothing."""
        b, t, n, _ = tokens_BTNC.shape
        if frame_mask_BT is None:
            spatial_BTN = self._spatial_scores(tokens_BTNC.flatten(0, 1)).view(b, t, n)
        elif torch.compiler.is_compiling():  # A graph has static shapes: masked frames are zeros there, not left out.
            tokens_BTNC = tokens_BTNC.masked_fill(~frame_mask_BT[..., None, None], 0)
            spatial_BTN = self._spatial_scores(tokens_BTNC.flatten(0, 1)).view(b, t, n)
        else:
            spatial_FN = self._spatial_scores(tokens_BTNC[frame_mask_BT])
            spatial_BTN = spatial_FN.new_zeros(b, t, n).index_put((frame_mask_BT,), spatial_FN)
        query, key, gain = self.temporal
        similarity_BTT = torch.einsum("btn,bun->btu", query * spatial_BTN, key * spatial_BTN) * n**-0.5
        if frame_mask_BT is not None:
            similarity_BTT = similarity_BTT.masked_fill(~frame_mask_BT[:, None, :], float("-inf"))
        return spatial_BTN + gain * similarity_BTT.softmax(-1) @ spatial_BTN

    def _spatial_scores(self, frames_FNC: Tensor) -> Tensor:
        """[F, N], a chunk of frames at a time."""
        if torch.compiler.is_compiling():
            chunks = [frames_FNC]
        else:
            chunks = frames_FNC.split(max(1, _tokens_per_chunk(frames_FNC.device) // frames_FNC.shape[1]))
        if self.gradient_checkpointing and torch.is_grad_enabled():
            scores = [checkpoint(self._chunk_scores, chunk, use_reentrant=False) for chunk in chunks]
        else:
            scores = [self._chunk_scores(chunk) for chunk in chunks]
        return torch.cat(scores)

    def _chunk_scores(self, frames_FNC: Tensor) -> Tensor:
        stream_FNW = self.down(frames_FNC)
        for norm, layer in zip(self.norms, self.layers):
            normed_FNW = norm(stream_FNW)
            stream_FNW = stream_FNW + layer(normed_FNW, normed_FNW)
        return self.head(self.head_norm(stream_FNW)).squeeze(-1)


def _tokens_per_chunk(device: torch.device) -> int:
    """Enough for the device's matrix products to run at full speed, few enough to be small beside the tokens."""
    return 4096 if device.type == "cpu" else 32768


def select_top_k(scores_BTN: Tensor, frame_mask_BT: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """Indices [B, K] into T·N of the best valid tokens, in temporal order, and their validity [B, K].

    K = min(top_k, T·N); valid selections come first. Among equal scores the choice is spread evenly over the frames,
    and does not depend on where padded frames stand.
    """
    b, t, n = scores_BTN.shape
    if frame_mask_BT is None:
        valid_BS = torch.ones(b, t * n, dtype=torch.bool, device=scores_BTN.device)
    else:
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
