"""TTA, text-conditioned token aggregation (paper sec. 3.2), and the linear aggregation that ends it.

Shape legend: B instructions, V videos, R most instructions of one video, Q queries, P pooled tokens, L text tokens,
C hidden size, H heads, D = C / H.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from linvt.video_tokenizer.attention import Attention
from linvt.video_tokenizer.config import LinVTConfig

_TIME_FREQUENCIES = 16
# How sharply an untrained LinVT prefers the patches that resemble the words.
_WORD_GAIN = 4.0


class AggregatorLayer(nn.Module):
    """Self-attention within a scale, cross-attention to its visual tokens, cross-attention to the text."""

    def __init__(self, config: LinVTConfig):
        super().__init__()
        c, h = config.hidden_size, config.num_heads
        self.self_norm, self.self_attention = nn.LayerNorm(c), Attention(c, h)
        self.visual_norm, self.visual_attention = nn.LayerNorm(c), Attention(c, h)
        if config.text_condition:
            self.text_norm, self.text_attention = nn.LayerNorm(c), Attention(c, h)


class Aggregator(nn.Module):
    """Scale-specific learnable queries through shared layers; returns the weights, never a transformed value."""

    def __init__(self, config: LinVTConfig):
        super().__init__()
        self.config = config
        c, h = config.hidden_size, config.num_heads
        self.queries = nn.ParameterList(nn.Parameter(torch.randn(q, c) * 0.02) for q in config.num_queries)
        self.key_norm = nn.LayerNorm(c)
        if config.time_in_keys:
            self.time = nn.Linear(2 * _TIME_FREQUENCIES, c, bias=False)
        if config.time_anchored_queries:
            # One width per query and head; exp() keeps it positive. At the start a query covers its share of time.
            self.log_widths = nn.ParameterList(
                nn.Parameter(torch.full((h, q), math.log(0.5 / q))) for q in config.num_queries
            )
        self.layers = nn.ModuleList(AggregatorLayer(config) for _ in range(config.num_layers))
        if config.text_condition:
            self.text_key_norm = nn.LayerNorm(c)
        self.out_norm = nn.LayerNorm(c)
        self.weight_query = nn.Linear(c, c)
        self.weight_key = nn.Linear(c, c)
        if config.time_anchored_queries:
            # Zero logits but for the anchors: an untrained LinVT is multi-scale temporal average pooling.
            nn.init.zeros_(self.weight_query.weight)
            nn.init.zeros_(self.weight_query.bias)
        if config.word_matched_start:
            self._start_from_words()

    def _start_from_words(self) -> None:
        """Queries begin as what the instruction says, compared with the keys as they are."""
        c = self.config.hidden_size
        for layer in self.layers:
            assert isinstance(layer, AggregatorLayer)
            for silent in (layer.self_attention.out, layer.visual_attention.out):
                nn.init.zeros_(silent.weight)
                nn.init.zeros_(silent.bias)
            for open_ in (layer.text_attention.value, layer.text_attention.out):
                nn.init.eye_(open_.weight)
                nn.init.zeros_(open_.bias)
        for linear, gain in ((self.weight_query, _WORD_GAIN), (self.weight_key, 1.0)):
            linear.weight.data.copy_(gain * torch.eye(c))
            nn.init.zeros_(linear.bias)

    def time_encoding(self, times: Tensor) -> Tensor:
        """[..., C] for times in [0, 1]."""
        frequencies = math.pi * 2.0 ** torch.linspace(0, 7, _TIME_FREQUENCIES, device=times.device)
        angles = times[..., None].float() * frequencies
        return self.time(torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.time.weight.dtype))

    def forward(
        self,
        scale: int,
        pooled_VPC: Tensor,
        bias_VP: Tensor,
        times_VP: Tensor,
        text_BLC: Tensor | None,
        text_mask_BL: Tensor | None,
        video_index_B: Tensor,
    ) -> Tensor:
        """W [B, Q, P]: the mean over heads of softmax(W_q Q · W_k T̄ᵀ / √D + bias). Rows sum to 1.

        `bias_VP` is the logarithm of each pooled token's weight, -inf where there is none.
        """
        config = self.config
        valid_VP = bias_VP > float("-inf")
        # Nothing is masked in most batches, and attention without a mask is faster.
        mask_VP = None if bool(valid_VP.all()) else valid_VP
        place = video_index_B, _running_number(video_index_B)
        most = int(place[1].max()) + 1
        keys_VPC = self.key_norm(pooled_VPC)
        anchors_Q = self._anchors(scale)
        stream = self.queries[scale]
        if config.time_in_keys:
            keys_VPC = keys_VPC + self.time_encoding(times_VP).to(keys_VPC.dtype)
            if config.time_anchored_queries:
                stream = stream + self.time_encoding(anchors_Q)
        stream = stream.expand(video_index_B.shape[0], -1, -1)
        text_keys = self.text_key_norm(text_BLC) if config.text_condition and text_BLC is not None else None
        for layer in self.layers:
            assert isinstance(layer, AggregatorLayer)
            normed = layer.self_norm(stream)
            stream = stream + layer.self_attention(normed, normed)
            # Visual keys and values depend on the video alone: made once, and read by all of its questions together.
            keys_values = layer.visual_attention.keys_values(keys_VPC, keys_VPC)
            queries_VSC = _gather_by_video(layer.visual_norm(stream), place, len(keys_VPC), most)
            mixed_VSC = layer.visual_attention.attend(queries_VSC, *keys_values, mask_VP)
            stream = stream + _scatter_to_instructions(mixed_VSC, place, most)
            if text_keys is not None:
                stream = stream + layer.text_attention(layer.text_norm(stream), text_keys, text_mask_BL)
        heads = config.num_heads
        queries_BQC = self.weight_query(self.out_norm(stream))
        queries_VHSD = rearrange(
            _gather_by_video(queries_BQC, place, len(keys_VPC), most), "v s (h d) -> v h s d", h=heads
        )
        keys_VHPD = rearrange(self.weight_key(keys_VPC), "v p (h d) -> v h p d", h=heads)
        logits_VHSP = queries_VHSD @ keys_VHPD.transpose(-1, -2) * queries_VHSD.shape[-1] ** -0.5
        prior_VHQP = bias_VP[:, None, None, :]
        if config.time_anchored_queries:
            distance_VQP = times_VP[:, None, :] - anchors_Q[None, :, None]
            precision_HQ = torch.exp(-2 * self.log_widths[scale].float())
            prior_VHQP = prior_VHQP - 0.5 * distance_VQP[:, None].square() * precision_HQ[None, :, :, None]
            prior_VHQP = prior_VHQP.repeat(1, 1, most, 1)
        weights_VSP = (logits_VHSP.float() + prior_VHQP).softmax(-1).mean(1)
        return _scatter_to_instructions(weights_VSP, place, most)

    def _anchors(self, scale: int) -> Tensor:
        q = self.config.num_queries[scale]
        return (torch.arange(q, device=self.queries[scale].device) + 0.5) / q


def _running_number(video_index_B: Tensor) -> Tensor:
    """[B]: 0 for a video's first instruction, 1 for its second, and so on."""
    same_BB = video_index_B[:, None] == video_index_B[None, :]
    return same_BB.tril(-1).sum(-1)


def _gather_by_video(values_BQC: Tensor, place: tuple[Tensor, Tensor], num_videos: int, most: int) -> Tensor:
    """[V, R·Q, C]: the instructions of each video side by side; zeros where a video has fewer than R."""
    _, q, c = values_BQC.shape
    by_video_VRQC = values_BQC.new_zeros(num_videos, most, q, c).index_put(place, values_BQC)
    return rearrange(by_video_VRQC, "v r q c -> v (r q) c")


def _scatter_to_instructions(values_VSC: Tensor, place: tuple[Tensor, Tensor], most: int) -> Tensor:
    """[B, Q, C]: the inverse of `_gather_by_video`."""
    return rearrange(values_VSC, "v (r q) c -> v r q c", r=most)[place]
