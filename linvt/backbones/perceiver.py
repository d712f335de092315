"""The perceiver resampler of BLIP-3: learned latents that read a frame's patches, whatever their number.

Shape legend: T frames, N patches, L latents, K = N + L, D channels of the tower, A heads, E channels a head, C hidden
size of the LLM.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class PerceiverResampler(nn.Module):
    """An unordered set of tokens [T, L, C] of patches [T, N, D]."""

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int,
        num_latents: int,
        num_layers: int,
        num_heads: int,
        head_channels: int,
        expansion: int,
    ):
        super().__init__()
        self.latents = nn.Parameter(torch.empty(num_latents, channels))
        self.layers = nn.ModuleList(
            _Layer(channels, num_heads=num_heads, head_channels=head_channels, expansion=expansion)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, out_channels)

    def forward(self, patches: Tensor) -> Tensor:
        latents_TLD = self.latents.expand(len(patches), -1, -1)
        for layer in self.layers:
            latents_TLD = layer(latents_TLD, patches)
        return self.projection(self.norm(latents_TLD))


class _Layer(nn.Module):
    def __init__(self, channels: int, *, num_heads: int, head_channels: int, expansion: int):
        super().__init__()
        self.attention = _Attention(channels, num_heads=num_heads, head_channels=head_channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, expansion * channels, bias=False),
            nn.GELU(),
            nn.Linear(expansion * channels, channels, bias=False),
        )

    def forward(self, latents_TLD: Tensor, patches_TND: Tensor) -> Tensor:
        latents_TLD = latents_TLD + self.attention(latents_TLD, patches_TND)
        return latents_TLD + self.feed_forward(latents_TLD)


class _Attention(nn.Module):
    """Latents attend to the patches and to themselves."""

    def __init__(self, channels: int, *, num_heads: int, head_channels: int):
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_channels
        self.norm_media = nn.LayerNorm(channels)
        self.norm_latents = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_kv = nn.Linear(channels, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels, bias=False)

    def forward(self, latents_TLD: Tensor, patches_TND: Tensor) -> Tensor:
        latents_TLD = self.norm_latents(latents_TLD)
        context = torch.cat([self.norm_media(patches_TND), latents_TLD], dim=1)
        query_TALE = rearrange(self.to_q(latents_TLD), "T L (A E) -> T A L E", A=self.num_heads)
        key, value = rearrange(self.to_kv(context), "T K (two A E) -> two T A K E", two=2, A=self.num_heads)
        attended = F.scaled_dot_product_attention(query_TALE, key, value)
        return self.to_out(rearrange(attended, "T A L E -> T L (A E)"))
