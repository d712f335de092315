"""LinVT (paper sec. 3.2): video tokens that are weighted averages of frame tokens, and the weights on request.

Shape legend: B instructions, V videos, R most instructions of one video, T frames, N tokens a frame, S = T·N,
K selected, P pooled, Q video tokens, q queries of one group, L text tokens, C hidden size.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from linvt.video_tokenizer.aggregator import Aggregator
from linvt.video_tokenizer.config import LinVTConfig
from linvt.video_tokenizer.pooling import pool, run_means, unfold, unpool
from linvt.video_tokenizer.pretrained import PretrainedMixin
from linvt.video_tokenizer.refiner import Refiner, select_top_k
from linvt.video_tokenizer.video_side import VideoSide


# No slots: DeepSpeed's ZeRO 3 looks into what a module returns by its __dict__.
@dataclass(frozen=True, kw_only=True)
class VideoTokens:
    """`tokens` [B, Q, C]; `mask` [B, Q], true = valid; `map` [B, Q, T·N] or None: `map @ V` equals `tokens`."""

    tokens: Tensor
    mask: Tensor
    map: Tensor | None = None


class LinVT(nn.Module, PretrainedMixin):
    """`LinVT(config)(tokens, text, …)`; see `forward`. `config.kind` and `config.multi_scale` choose the variant."""

    # The quotes keep huggingface_hub from building the configuration by itself.
    def __init__(self, config: "LinVTConfig"):
        super().__init__()
        if config.kind == "avg":
            raise ValueError('kind "avg" has no LinVT; build_video_tokenizer makes a FrameAverage of it')
        self.config = config
        self.refiner = Refiner(config) if config.kind != "tta" else None
        self.aggregator = Aggregator(config) if config.kind != "svr" else None

    def gradient_checkpointing_enable(self, enabled: bool = True) -> None:
        """Recompute the refiner's activations in the backward pass: memory no longer grows by L activations a token."""
        if self.refiner is not None:
            self.refiner.gradient_checkpointing = enabled

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
        side = self.encode_videos(tokens, frame_mask, times=times)
        return self.aggregate(side, text, text_mask, video_index=video_index, return_map=return_map)

    def encode_videos(
        self, tokens: Tensor, frame_mask: Tensor | None = None, *, times: Tensor | None = None
    ) -> VideoSide:
        """The part of `forward` that needs no instruction: scores, selection, pooling, and the aggregator's keys."""
        v, t, n, c = tokens.shape
        if c != self.config.hidden_size:
            raise ValueError(f"tokens have {c} channels, this LinVT was built for {self.config.hidden_size}")
        # What follows from values cannot be looked at in a compiled graph: there, masks are taken as they are.
        if frame_mask is not None and not torch.compiler.is_compiling():
            if not bool(frame_mask.any(-1).all()):
                raise ValueError("a video of the batch has no valid frame")
            frame_mask = None if bool(frame_mask.all()) else frame_mask
        if times is None:
            mask_VT = torch.ones(v, t, dtype=torch.bool, device=tokens.device) if frame_mask is None else frame_mask
            times = ((mask_VT.long().cumsum(-1) - 0.5) / mask_VT.sum(-1, keepdim=True)).clamp(0, 1)

        scores_VTN = self.refiner(tokens, frame_mask) if self.refiner is not None else tokens.new_zeros(v, t, n)
        top_k = self.config.top_k if self.refiner is not None else t * n
        chosen_VK, valid_VK = select_top_k(self._perturbed(scores_VTN), frame_mask, top_k)
        selected_VKC = tokens.flatten(1, 2).gather(1, chosen_VK[..., None].expand(-1, -1, c))
        times_VK = times.float().gather(1, chosen_VK // n)
        weights_VK = self._weights(scores_VTN, chosen_VK)
        is_ragged = frame_mask is not None and (torch.compiler.is_compiling() or not bool(valid_VK.all()))
        if is_ragged:
            # What masked frames hold must not matter, and NaN times zero is NaN.
            selected_VKC = selected_VKC.masked_fill(~valid_VK[..., None], 0)
            weights_VK = weights_VK.masked_fill(~valid_VK, 0)
        keys = None
        if self.aggregator is not None:
            pooled, sums, window_times = [], [], []
            for window in self.aggregator.windows:
                pooled_VPC, sums_VP = pool(selected_VKC, weights_VK, window)
                pooled.append(pooled_VPC)
                sums.append(sums_VP)
                window_times.append(_window_times(times_VK, weights_VK, window))
            bias_VP = _log(torch.cat(sums, dim=1))
            keys = self.aggregator.visual_keys(
                torch.cat(pooled, dim=1),
                bias_VP,
                torch.cat(window_times, dim=1),
                bias_VP > float("-inf") if is_ragged else None,
                tuple(part.shape[1] for part in pooled),
            )
        return VideoSide(chosen=chosen_VK, weights=weights_VK, selected=selected_VKC, num_tokens=t * n, keys=keys)

    def aggregate(
        self,
        side: VideoSide,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        video_index: Tensor | None = None,
        return_map: bool = False,
    ) -> VideoTokens:
        """The part of `forward` that each question needs: `forward` is `aggregate(encode_videos(…), …)`."""
        num_videos = len(side.chosen)
        num_instructions = num_videos if video_index is None else len(video_index)
        if self.aggregator is not None and self.config.text_condition:
            if text is None:
                raise ValueError("this LinVT is conditioned on text: pass the instruction's embeddings [B, L, C]")
            if len(text) != num_instructions:
                raise ValueError(f"{len(text)} instructions for {num_instructions} questions about videos")
        place, num_questions = None, 1
        if video_index is not None:
            place = video_index, _running_number(video_index)
            num_questions = int(place[1].max()) + 1
        if self.aggregator is None:
            outputs, maps = self._run_means(side, num_questions, return_map)
        else:
            text_VRLC = None if text is None else _by_video(text, place, num_videos, num_questions)
            text_mask_VRL = None if text_mask is None else _by_video(text_mask, place, num_videos, num_questions)
            outputs, maps = self._weigh(side, text_VRLC, text_mask_VRL, num_questions, return_map)
        out_BQC = torch.cat([_by_instruction(output, place, num_questions) for output in outputs], dim=1)
        full_map = None
        if return_map:
            map_BQK = torch.cat([_by_instruction(part, place, num_questions) for part in maps], dim=1)
            index_BK = side.chosen if video_index is None else side.chosen[video_index]
            full_map = map_BQK.new_zeros(*map_BQK.shape[:2], side.num_tokens).scatter(
                -1, index_BK[:, None, :].expand_as(map_BQK), map_BQK
            )
        mask = torch.ones(out_BQC.shape[:2], dtype=torch.bool, device=out_BQC.device)
        return VideoTokens(tokens=out_BQC, mask=mask, map=full_map)

    def _weigh(
        self,
        side: VideoSide,
        text_VRLC: Tensor | None,
        text_mask_VRL: Tensor | None,
        num_questions: int,
        return_map: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Video tokens [V, R·q, C] of each group of queries, and their maps [V, R·q, K] over the selected tokens."""
        assert self.aggregator is not None
        assert side.keys is not None
        outputs, maps = [], []
        groups = self.aggregator.groups(side.keys.counts)
        weights = self.aggregator(side.keys, text_VRLC, text_mask_VRL, num_questions)
        for weights_VqP, (_, seen) in zip(weights, groups):
            for part_VqP in self._pooled_afterwards(weights_VqP, num_questions):
                outputs.append(part_VqP.to(side.selected.dtype) @ side.keys.pooled[:, seen])
                if return_map:
                    maps.append(self._unpooled(part_VqP, seen, side))
        return outputs, maps

    def _pooled_afterwards(self, weights_VSP: Tensor, num_questions: int) -> list[Tensor]:
        """Multi-A: the queries' weights, and their means over equal runs of queries, one for each scale."""
        if self.config.multi_scale != "A":
            return [weights_VSP]
        return [
            rearrange(weights_VSP, "v (r q w) p -> v (r q) w p", r=num_questions, q=q).mean(2)
            for q in self.config.num_queries
        ]

    def _unpooled(self, weights_VqP: Tensor, seen: slice, side: VideoSide) -> Tensor:
        """[V, q, K] from weights over the pooled tokens `seen` of one scale, or of all."""
        assert self.aggregator is not None
        assert side.keys is not None
        out = 0
        end = 0
        for window, count in zip(self.aggregator.windows, side.keys.counts):
            begin, end = end, end + count
            if seen.start <= begin and end <= seen.stop:
                scale_VqP = weights_VqP[:, :, begin - seen.start : end - seen.start]
                out = out + unpool(scale_VqP, side.weights, window)
        assert isinstance(out, Tensor)
        return out

    def _run_means(self, side: VideoSide, num_questions: int, return_map: bool) -> tuple[list[Tensor], list[Tensor]]:
        """SVR without TTA: a scale's tokens are means over equal runs of the selection, the same for any question."""
        maps = [run_means(side.weights, q).repeat(1, num_questions, 1) for q in self.config.num_queries]
        return [part.to(side.selected.dtype) @ side.selected for part in maps], maps if return_map else []

    def _perturbed(self, scores_VTN: Tensor) -> Tensor:
        if not (self.training and self.config.gumbel_noise):
            return scores_VTN
        uniform = torch.rand_like(scores_VTN, dtype=torch.float32).clamp(1e-9, 1 - 1e-7)
        return scores_VTN.detach() - self.config.gumbel_noise * (-uniform.log()).log()

    def _weights(self, scores_VTN: Tensor, chosen_VK: Tensor) -> Tensor:
        """Positive weights [V, K] in float32 of the selected tokens."""
        ones_VK = torch.ones_like(chosen_VK, dtype=torch.float32)
        if self.refiner is None or self.config.scorer_gradient == "none":
            return ones_VK
        scores_VK = scores_VTN.flatten(1).gather(1, chosen_VK).float()
        # The floor keeps log(weight) finite, and with it the gradient of a token that was scored away.
        significance_VK = torch.sigmoid(scores_VK).clamp(min=1e-4)
        if self.config.scorer_gradient == "straight_through":
            return ones_VK + (significance_VK - significance_VK.detach())
        return significance_VK


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


def _running_number(video_index_B: Tensor) -> Tensor:
    """[B]: 0 for a video's first instruction, 1 for its second, and so on."""
    same_BB = video_index_B[:, None] == video_index_B[None, :]
    return same_BB.tril(-1).sum(-1)


def _by_video(values_B: Tensor, place: tuple[Tensor, Tensor] | None, num_videos: int, num_questions: int) -> Tensor:
    """[V, R, …]: the instructions of each video; zeros where a video has fewer than R."""
    if place is None:
        return values_B[:, None]
    return values_B.new_zeros(num_videos, num_questions, *values_B.shape[1:]).index_put(place, values_B)


def _by_instruction(values_VSC: Tensor, place: tuple[Tensor, Tensor] | None, num_questions: int) -> Tensor:
    """[B, Q, C] from [V, R·Q, C]."""
    if place is None:
        return values_VSC
    return rearrange(values_VSC, "v (r q) c -> v r q c", r=num_questions)[place]


def build_video_tokenizer(config: LinVTConfig) -> nn.Module:
    """`LinVT`, or the baseline that `config.kind` names."""
    if config.kind == "avg":
        from linvt.video_tokenizer.baselines import FrameAverage

        return FrameAverage(config)
    return LinVT(config)
