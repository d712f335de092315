"""The *Avg* baseline of the paper's Table 2: each frame becomes the mean of its tokens.

Shape legend: B instructions, V videos, T frames, N tokens a frame, C hidden size.
"""

import torch
from torch import Tensor, nn

from linvt.video_tokenizer.config import LinVTConfig
from linvt.video_tokenizer.linvt import VideoTokens


class FrameAverage(nn.Module):
    """Interface of `LinVT`, without parameters: T video tokens, masked frames masked."""

    def __init__(self, config: LinVTConfig):
        super().__init__()
        self.config = config

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
        v, t, n, _ = tokens.shape
        if frame_mask is None:
            frame_mask = torch.ones(v, t, dtype=torch.bool, device=tokens.device)
        index = torch.arange(v, device=tokens.device) if video_index is None else video_index
        averages_VTC = tokens.mean(2) * frame_mask[..., None].to(tokens.dtype)
        weights = None
        if return_map:
            frame_VTT = torch.eye(t, device=tokens.device).expand(v, -1, -1) * frame_mask[:, :, None]
            weights = (frame_VTT / n).repeat_interleave(n, dim=-1)[index]
        return VideoTokens(tokens=averages_VTC[index], mask=frame_mask[index], map=weights)
