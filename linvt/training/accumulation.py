"""The forward and backward passes of one step, over all of a worker's samples at once or in parts.

In parts, a step holds the activations of one part at a time and gives the same gradient up to rounding: the loss is
normalised by the whole step's answer tokens before the first part is run.

The contrastive loss compares all videos of a step on all workers, in parts too. Its gradient comes in three passes, as
in GradCache (arXiv 2101.06983): the means of video and caption tokens of every part, without a graph; the loss on all
of them, which gives the head's gradient and that of each video's mean; then each part again, with the loss on its
answers, where a video's mean meets its gradient. That costs a second pass through LinVT, and none through the LLM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from linvt.training.batches import Batch
from linvt.training.config import TrainConfig
from linvt.training.engine import Engine


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutput:
    """Of this worker's samples of one step."""

    answer_nll: Tensor
    """Summed over answer tokens."""
    answer_tokens: int
    contrastive: Tensor
    """Mean over this worker's videos; 0 where there is none."""
    num_videos: int


def split_share(share: np.ndarray, micro_batch: int | None) -> list[np.ndarray]:
    """A worker's samples of one step as parts of at most `micro_batch`: as few as can be, as even as can be."""
    num_parts = 1 if micro_batch is None else -(-len(share) // micro_batch)
    return [share[part::num_parts] for part in range(num_parts)]


def forward_backward(
    engine: Engine,
    parts: Sequence[Batch],
    config: TrainConfig,
    *,
    seed_of_part: Callable[[int], int],
    uses_all: bool,
) -> StepOutput:
    """Leaves the step's gradient with the engine, for `Engine.update`. Collective: every rank brings as many parts.

    `seed_of_part` seeds what is random in a part; `uses_all` as for `Engine.backward`.
    """
    world_size = dist.get_world_size()
    num_videos = sum(len(part.tokens) for part in parts)
    answer_tokens = sum(part.answer_tokens for part in parts)
    totals = torch.tensor([answer_tokens, num_videos], dtype=torch.float64, device=parts[0].tokens.device)
    dist.all_reduce(totals)
    all_answer_tokens, all_videos = totals.tolist()
    # DeepSpeed takes the mean of the workers' gradients, hence the world size. A mean over each worker's own tokens
    # would weigh them by who they came to.
    nll_scale = world_size / all_answer_tokens
    contrastive_scale = 0.0
    if config.is_contrastive and all_videos:
        contrastive_scale = config.contrastive_weight * world_size * num_videos / all_videos

    contrastive = torch.zeros((), device=totals.device)
    gradients: list[Tensor | None] = [None] * len(parts)
    if len(parts) > 1 and contrastive_scale:
        means = []
        for number, part in enumerate(parts):
            torch.manual_seed(seed_of_part(number))
            with torch.no_grad():
                means.append(engine.forward(part, only="means"))
        video_VC = torch.cat([video for video, _ in means]).requires_grad_()
        captions_VC = torch.cat([caption for _, caption in means])
        ids_V = torch.cat([part.video_ids for part in parts])
        contrastive = engine.forward((video_VC, captions_VC, ids_V), only="contrastive")
        engine.backward(contrastive_scale * contrastive, is_last=False, uses_all=False)
        assert video_VC.grad is not None
        gradients = list(video_VC.grad.split([len(part.tokens) for part in parts]))

    nll = torch.zeros((), device=totals.device)
    for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
        torch.manual_seed(seed_of_part(number))
        output = engine.forward(part, video_gradient=gradient)
        loss = output.answer_nll * nll_scale
        if gradient is not None:
            loss = loss + output.contrastive
        elif contrastive_scale:
            contrastive = output.contrastive
            loss = loss + contrastive_scale * contrastive
        engine.backward(loss, is_last=number == len(parts) - 1, uses_all=uses_all)
        nll = nll + output.answer_nll.detach()
    return StepOutput(
        answer_nll=nll,
        answer_tokens=answer_tokens,
        contrastive=contrastive.detach(),
        num_videos=num_videos,
    )
