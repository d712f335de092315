"""Early stops for runs that have gone wrong while every number is still finite.

**Divergence.** The mean loss of the last `divergence_steps` steps is more than `divergence_factor` times the lowest
such mean so far, and lies more than 1 above it (so that a loss near zero may move). The mean is over steps, not over
logged lines, and every worker sees the same losses, so all stop together.

**A scorer that collapsed.** LinVT's scores decide which tokens of a long video are kept. Where they are all equal, that
choice is an even spread, whatever is in the video. After the warm-up, for `collapse_steps` steps in a row in which some
video had more valid tokens than `top_k`, no such video's scores differed by more than a millionth of their size. All
scores start equal, by design; the first steps of learning part them.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linvt.training.config import TrainConfig

_LEAST_RISE = 1.0
_LEAST_SPREAD = 1e-6


class TrainingFailed(RuntimeError):
    """A run that would go on for nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardState:
    """What a resumed run must know to stop where the uninterrupted one would have."""

    recent_losses: tuple[float, ...] = ()
    lowest_mean: float | None = None
    collapsed_steps: int = 0


class Guards:
    """Looks at each step; raises TrainingFailed."""

    def __init__(self, config: TrainConfig, state: GuardState) -> None:
        self.config = config
        self._losses = deque(state.recent_losses, maxlen=max(1, config.divergence_steps))
        self._lowest_mean = state.lowest_mean
        self._collapsed_steps = state.collapsed_steps

    @property
    def state(self) -> GuardState:
        return GuardState(
            recent_losses=tuple(self._losses), lowest_mean=self._lowest_mean, collapsed_steps=self._collapsed_steps
        )

    def check(self, step: int, *, loss: float, videos_selecting: float, videos_parted: float) -> None:
        """`step` counts from 1. Of this step's videos, over all workers: how many had more valid tokens than are kept,
        and of how many of those the scores differed."""
        self._check_loss(step, loss)
        self._check_scorer(step, videos_selecting, videos_parted)

    def _check_loss(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        if not self.config.divergence_steps or len(self._losses) < self.config.divergence_steps:
            return
        mean = sum(self._losses) / len(self._losses)
        lowest = self._lowest_mean
        if lowest is not None and mean > self.config.divergence_factor * lowest and mean > lowest + _LEAST_RISE:
            raise TrainingFailed(
                f"the loss runs away: its mean over the last {len(self._losses)} steps is {mean:.3f} at step {step}, "
                f"and was {lowest:.3f} at its lowest. Start again with a lower --learning-rate or a smaller "
                "--clip-grad-norm; --divergence-factor and --divergence-steps say what counts as running away"
            )
        self._lowest_mean = mean if lowest is None else min(lowest, mean)

    def _check_scorer(self, step: int, videos_selecting: float, videos_parted: float) -> None:
        if not self.config.collapse_steps or step <= self.config.warmup_steps or not videos_selecting:
            return
        self._collapsed_steps = 0 if videos_parted else self._collapsed_steps + 1
        if self._collapsed_steps >= self.config.collapse_steps:
            raise TrainingFailed(
                f"LinVT scores every token alike: for {self._collapsed_steps} steps up to step {step} no video's "
                "scores differed, so what is kept of a long video has nothing to do with what it shows. Try a higher "
                "--learning-rate, a lower --weight-decay or another --seed; --collapse-steps 0 lets it go on"
            )


class ScoreWatch:
    """Sees the scores that LinVT's refiner gives, from outside. Nothing to see where no gradient could part them."""

    def __init__(self, video_tokenizer: Any) -> None:
        self._top_k = video_tokenizer.config.top_k
        self._selecting = self._parted = self._spread = 0.0
        refiner = getattr(video_tokenizer, "refiner", None)
        if isinstance(refiner, nn.Module) and video_tokenizer.config.scorer_gradient != "none":
            refiner.register_forward_hook(self._look)

    def take(self) -> tuple[float, float, float]:
        """Since the last call: videos with more valid tokens than are kept; those of them whose scores differed; the
        sum of the differences between their largest and their smallest score."""
        seen = self._selecting, self._parted, self._spread
        self._selecting = self._parted = self._spread = 0.0
        return seen

    @torch.no_grad()
    def _look(self, _: nn.Module, inputs: tuple[Any, ...], scores_VTN: Tensor) -> None:
        frame_mask_VT = inputs[1] if len(inputs) > 1 else None
        scores_VTN = scores_VTN.detach().float()
        for i, scores_TN in enumerate(scores_VTN):
            valid = scores_TN if frame_mask_VT is None else scores_TN[frame_mask_VT[i]]
            if valid.numel() <= self._top_k:
                continue
            low, high = valid.aminmax()
            spread = float(high - low)
            self._selecting += 1
            self._parted += spread > _LEAST_SPREAD * max(1.0, float(high.abs()), float(low.abs()))
            self._spread += spread
