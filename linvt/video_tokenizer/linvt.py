"""LinVT (paper sec. 3.2): video tokens that are weighted averages of frame tokens, and the weights on request.

Shape legend: B instructions, V videos, T frames, N tokens a frame, S = T·N, K selected, P pooled, Q video tokens,
L text tokens, C hidden size.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from linvt.video_tokenizer.aggregator import Aggregator
from linvt.video_tokenizer.config import LinVTConfig
from linvt.video_tokenizer.pooling import pool, unfold, unpool
from linvt.video_tokenizer.refiner import Refiner, select_top_k


# No slots: DeepSpeed's ZeRO 3 looks into what a module returns by its __dict__.
@dataclass(frozen=True, kw_only=True)
class VideoTokens:
    """`tokens` [B, Q, C]; `mask` [B, Q], true = valid; `map` [B, Q, T·N] or None: `map @ V` equals `tokens`."""

    tokens: Tensor
    mask: Tensor
    map: Tensor | None = None


class LinVT(nn.Module):
    """`LinVT(config)(tokens, text, …)`; see `forward`. Multi-C: each scale is aggregated apart (paper Table 4)."""

    def __init__(self, config: LinVTConfig):
        super().__init__()
        self.config = config
        self.refiner = Refiner(config)
        self.aggregator = Aggregator(config)

    def forward(
        self,
        tokens: Tensor,
        text: Tensor | None = None,
        frame_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        times: Tensor | None = None,
        video_index: Tensor | None = None,
        return_map: bool = False,
    ) -> VideoTokens:
        """Frame tokens [V, T, N, C] and instruction embeddings [B, L, C] to video tokens [B, Q, C].

        `frame_mask` [V, T] and `text_mask` [B, L]: true = valid. `times` [V, T]: a frame's place in its video, in
        [0, 1]; evenly spaced over the valid frames when omitted. `video_index` [B]: which video each instruction asks
        about (default: B = V, one each), so that a video with many questions is refined and pooled once.
        Raises ValueError where shapes disagree or a video has no valid frame.
        """
        v, t, n, c = tokens.shape
        if c != self.config.hidden_size:
            raise ValueError(f"tokens have {c} channels, this LinVT was built for {self.config.hidden_size}")
        if self.config.text_condition and text is None:
            raise ValueError("this LinVT is conditioned on text: pass the instruction's embeddings [B, L, C]")
        if frame_mask is None:
            frame_mask = torch.ones(v, t, dtype=torch.bool, device=tokens.device)
        if not bool(frame_mask.any(-1).all()):
            raise ValueError("a video of the batch has no valid frame")
        if times is None:
            count_V = frame_mask.sum(-1, keepdim=True)
            times = ((frame_mask.long().cumsum(-1) - 0.5) / count_V).clamp(0, 1)
        if video_index is None:
            video_index = torch.arange(v, device=tokens.device)
        if text is not None and len(text) != len(video_index):
            raise ValueError(f"{len(text)} instructions for {len(video_index)} questions about videos")

        # What masked frames hold must not matter, and NaN times zero is NaN.
        tokens = tokens.masked_fill(~frame_mask[:, :, None, None], 0)
        scores_VTN = self.refiner(tokens, frame_mask)
        chosen_VK, valid_VK = select_top_k(scores_VTN, frame_mask, self.config.top_k)
        flat_VSC = rearrange(tokens, "v t n c -> v (t n) c")
        selected_VKC = flat_VSC.gather(1, chosen_VK[..., None].expand(-1, -1, c))
        times_VK = times.float().gather(1, chosen_VK // n)
        weights_VK = self._weights(scores_VTN, chosen_VK) * valid_VK

        outputs, maps = [], []
        for scale, window in enumerate(self.config.windows):
            pooled_VPC, sums_VP = pool(selected_VKC, weights_VK, window)
            times_VP = _window_times(times_VK, weights_VK, window)
            weights_BQP = self.aggregator(scale, pooled_VPC, _log(sums_VP), times_VP, text, text_mask, video_index)
            outputs.append(weights_BQP.to(pooled_VPC.dtype) @ pooled_VPC[video_index])
            if return_map:
                selected_map = unpool(weights_BQP, weights_VK[video_index], window)
                full = selected_map.new_zeros(*selected_map.shape[:2], t * n)
                index = chosen_VK[video_index][:, None, :].expand_as(selected_map)
                maps.append(full.scatter_add(-1, index, selected_map))
        out = torch.cat(outputs, dim=1)
        return VideoTokens(
            tokens=out,
            mask=torch.ones(out.shape[:2], dtype=torch.bool, device=out.device),
            map=torch.cat(maps, dim=1) if return_map else None,
        )

    def _weights(self, scores_VTN: Tensor, chosen_VK: Tensor) -> Tensor:
        """Positive weights [V, K] in float32 of the selected tokens."""
        if self.config.scorer_gradient == "none":
            return torch.ones_like(chosen_VK, dtype=torch.float32)
        # The floor keeps log(weight) finite, and with it the gradient of a token that was scored away.
        scores_VK = rearrange(scores_VTN, "v t n -> v (t n)").gather(1, chosen_VK).float()
        return torch.sigmoid(scores_VK).clamp(min=1e-4)


def _log(sums_VP: Tensor) -> Tensor:
    """log, with -inf and no gradient (rather than NaN) where a window holds nothing."""
    empty = sums_VP == 0
    return sums_VP.masked_fill(empty, 1.0).log().masked_fill(empty, float("-inf"))


def _window_times(times_VK: Tensor, weights_VK: Tensor, window: int) -> Tensor:
    """The mean time of a window's valid tokens [V, P]; like the tokens, independent of padding."""
    if window == 1:
        return times_VK
    present = (weights_VK > 0).float()
    sums = unfold(times_VK * present, window).sum(-1)
    return sums / unfold(present, window).sum(-1).clamp(min=1.0)


def build_video_tokenizer(config: LinVTConfig) -> nn.Module:
    """`LinVT`, or the baseline that `config.kind` names."""
    if config.kind == "avg":
        from linvt.video_tokenizer.baselines import FrameAverage

        return FrameAverage(config)
    return LinVT(config)
