"""Validation inside a run: the loss of held-out visits, and the share of questions answered right."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from linvt.evaluation.scoring import is_correct
from linvt.training.batches import collate
from linvt.training.context import TrainContext
from linvt.training.data import VisitSet
from linvt.training.model import set_training_mode
from linvt.video_llm import VideoLLM


@torch.no_grad()
def validate(
    model: VideoLLM,
    visits: VisitSet,
    context: TrainContext,
    *,
    batch_size: int,
    max_visits: int,
    max_answers: int,
    gradient_checkpointing: bool,
) -> dict[str, float]:
    """`eval_loss`, the mean over answer tokens, and with `max_answers` > 0 `eval_accuracy` of generated answers.

    Over the first `max_visits` visits, evenly spread over the cache, each rank taking its stride. Collective.
    """
    model.eval()
    numbers = _spread(len(visits), max_visits)
    mine = numbers[context.rank :: context.world_size]
    totals = torch.zeros(2, dtype=torch.float64, device=context.device)
    for start in range(0, -(-len(numbers) // context.world_size), batch_size):
        chunk = mine[start : start + batch_size]
        # Under ZeRO 3 every rank has to run the model equally often: one without a share left looks on. No captions, so
        # no contrastive loss: it compares the videos of one batch, which says little about held-out ones.
        loaded = [replace(visits.load(number), caption=None) for number in chunk or numbers[:1]]
        out = model(collate(loaded, model.backbone).to(context.device))
        if chunk:
            totals += torch.stack([out.answer_nll.double(), out.answer_tokens.double()])
    dist.all_reduce(totals)
    metrics = {"eval_loss": float(totals[0] / totals[1])}
    if max_answers > 0:
        asked = numbers[:: max(1, len(numbers) // max_answers)][:max_answers]
        metrics["eval_accuracy"] = _accuracy(model, visits, asked, context, batch_size)
    set_training_mode(model, gradient_checkpointing=gradient_checkpointing)
    return metrics


def _accuracy(
    model: VideoLLM, visits: VisitSet, numbers: Sequence[int], context: TrainContext, batch_size: int
) -> float:
    """The share of exact matches over the first question of each visit."""
    mine = numbers[context.rank :: context.world_size]
    counts = torch.zeros(2, dtype=torch.float64, device=context.device)
    for start in range(0, len(mine), batch_size):
        loaded = [visits.load(number) for number in mine[start : start + batch_size]]
        answers = model.answer_batch([(visit.video, visit.turns[0].question) for visit in loaded])
        right = sum(is_correct(text, visit.turns[0].answer) for text, visit in zip(answers, loaded, strict=True))
        counts += torch.tensor([right, len(loaded)], device=context.device)
    dist.all_reduce(counts)
    return float(counts[0] / counts[1])


def _spread(count: int, most: int) -> list[int]:
    """`most` numbers (or all) evenly spread over range(count)."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]
