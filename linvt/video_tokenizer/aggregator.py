"""TTA, text-conditioned token aggregation (paper sec. 3.2), and the linear aggregation that ends it.

Shape legend: B instructions, V videos, R most instructions of one video, Q queries (of all scales, side by side),
q queries of one group, P pooled tokens (of all scales, side by side), p pooled tokens of one group, L text tokens,
C hidden size, H heads, D = C / H. A group is a run of queries and the run of pooled tokens that they read.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from linvt.video_tokenizer.attention import Attention
from linvt.video_tokenizer.config import LinVTConfig
from linvt.video_tokenizer.video_side import VisualKeys

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
    """Scale-specific learnable queries through shared layers; returns the weights, never a transformed value.

    `config.multi_scale` decides which queries read which scales (paper Table 4); see `groups`.
    """

    def __init__(self, config: LinVTConfig):
        super().__init__()
        self.config = config
        c, h = config.hidden_size, config.num_heads
        unpooled = {"single": (config.num_video_tokens,), "A": config.num_queries[:1]}
        self.num_queries: tuple[int, ...] = unpooled.get(config.multi_scale, config.num_queries)
        self.windows: tuple[int, ...] = (1,) if config.multi_scale in unpooled else config.windows
        self.queries = nn.ParameterList(nn.Parameter(torch.randn(q, c) * 0.02) for q in self.num_queries)
        self.key_norm = nn.LayerNorm(c)
        if config.time_in_keys:
            self.time = nn.Linear(2 * _TIME_FREQUENCIES, c, bias=False)
        if config.time_anchored_queries:
            # One width per query and head; exp() keeps it positive. At the start a query covers its share of time.
            self.log_widths = nn.ParameterList(
                nn.Parameter(torch.full((h, q), math.log(0.5 / q))) for q in self.num_queries
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

    def groups(self, counts: tuple[int, ...]) -> list[tuple[slice, slice]]:
        """Which queries read which pooled tokens, given the pooled tokens of each scale."""
        if self.config.multi_scale == "B":
            return [(slice(0, sum(self.num_queries)), slice(0, sum(counts)))]
        return list(zip(_slices(self.num_queries), _slices(counts)))

    def visual_keys(
        self, pooled_VPC: Tensor, bias_VP: Tensor, times_VP: Tensor, mask_VP: Tensor | None, counts: tuple[int, ...]
    ) -> VisualKeys:
        """Everything that depends on the video alone: made once for all scales, and read by all of its questions.

        `bias_VP` is the logarithm of each pooled token's weight, -inf where there is none.
        """
        keys_VPC = self.key_norm(pooled_VPC)
        if self.config.time_in_keys:
            keys_VPC = keys_VPC + self.time_encoding(times_VP).to(keys_VPC.dtype)
        layers = []
        for layer in self.layers:
            assert isinstance(layer, AggregatorLayer)
            layers.append(layer.visual_attention.keys_values(keys_VPC, keys_VPC))
        return VisualKeys(
            pooled=pooled_VPC,
            bias=bias_VP,
            times=times_VP,
            mask=mask_VP,
            counts=counts,
            layers=tuple(layers),
            weight_keys=rearrange(self.weight_key(keys_VPC), "v p (h d) -> v h p d", h=self.config.num_heads),
        )

    def forward(
        self, keys: VisualKeys, text_VRLC: Tensor | None, text_mask_VRL: Tensor | None, num_questions: int
    ) -> list[Tensor]:
        """W [V, R·q, p] of each group: the mean over heads of softmax(W_q Q · W_k Kᵀ / √D + bias). Rows sum to 1.

        The R = `num_questions` instructions of a video stand side by side.
        """
        config = self.config
        v, r = len(keys.pooled), num_questions
        groups = self.groups(keys.counts)
        queries = list(self.queries)
        if config.time_in_keys and config.time_anchored_queries:
            queries = [query + self.time_encoding(self._anchors(len(query))) for query in queries]
        stream = torch.cat(queries).expand(v * r, -1, -1)
        text = text_mask = None
        if config.text_condition and text_VRLC is not None:
            text = self.text_key_norm(text_VRLC.flatten(0, 1))
            text_mask = None if text_mask_VRL is None else text_mask_VRL.flatten(0, 1)
        for layer, (layer_keys, layer_values) in zip(self.layers, keys.layers):
            assert isinstance(layer, AggregatorLayer)
            normed = layer.self_norm(stream)
            mixed = [layer.self_attention(normed[:, own], normed[:, own]) for own, _ in groups]
            stream = stream + torch.cat(mixed, dim=1)
            normed = layer.visual_norm(stream)
            mixed = [
                _apart(
                    layer.visual_attention.attend(
                        _together(normed[:, own], r), layer_keys[:, :, seen], layer_values[:, :, seen], _of(keys, seen)
                    ),
                    r,
                )
                for own, seen in groups
            ]
            stream = stream + torch.cat(mixed, dim=1)
            if text is not None:
                stream = stream + layer.text_attention(layer.text_norm(stream), text, text_mask)
        queries_NQC = self.weight_query(self.out_norm(stream))
        log_widths = torch.cat(list(self.log_widths), dim=1) if config.time_anchored_queries else None
        anchors_Q = torch.cat([self._anchors(q) for q in self.num_queries])
        weights = []
        for own, seen in groups:
            queries_VHRqD = rearrange(queries_NQC[:, own], "(v r) q (h d) -> v h (r q) d", r=r, h=config.num_heads)
            keys_VHpD = keys.weight_keys[:, :, seen]
            logits = (queries_VHRqD @ keys_VHpD.transpose(-1, -2) * keys_VHpD.shape[-1] ** -0.5).float()
            logits = rearrange(logits, "v h (r q) p -> v h r q p", r=r) + keys.bias[:, None, None, None, seen]
            if log_widths is not None:
                distance_Vqp = keys.times[:, None, seen] - anchors_Q[None, own, None]
                precision_Hq = torch.exp(-2 * log_widths[:, own].float())
                prior_VHqp = 0.5 * distance_Vqp[:, None].square() * precision_Hq[None, :, :, None]
                logits = logits - prior_VHqp[:, :, None]
            weights.append(logits.softmax(-1).mean(1).flatten(1, 2))
        return weights

    def _anchors(self, num_queries: int) -> Tensor:
        return (torch.arange(num_queries, device=self.queries[0].device) + 0.5) / num_queries


def _slices(counts: tuple[int, ...]) -> list[slice]:
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [slice(end - count, end) for end, count in zip(ends, counts)]


def _of(keys: VisualKeys, seen: slice) -> Tensor | None:
    return None if keys.mask is None else keys.mask[:, seen]


def _together(values_NQC: Tensor, num_questions: int) -> Tensor:
    """[V, R·Q, C]: the instructions of each video side by side, so that its keys are read once."""
    return rearrange(values_NQC, "(v r) q c -> v (r q) c", r=num_questions)


def _apart(values_VSC: Tensor, num_questions: int) -> Tensor:
    """[V·R, Q, C]: the inverse of `_together`."""
    return rearrange(values_VSC, "v (r q) c -> (v r) q c", r=num_questions)
