"""The training loop, flat: set up, resume, step, look, save, finish.

It runs on every worker, in step with the others, and knows of them only what its context says. What makes a step is a
pure function of (config, step): the samples, the learning rate and the random numbers; so a resumed run needs three
integers besides the tensors, and goes on bit for bit on as many workers as before.
"""

import json
import logging
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from linvt.annotations.reading import AUTO
from linvt.read_ahead import read_ahead
from linvt.shards import Cache, read_cache
from linvt.shards.layout import EXTRACTION
from linvt.training.accumulation import forward_backward, split_share
from linvt.training.batches import Batch, collate
from linvt.training.best import Best, is_better, save_best
from linvt.training.checkpoint import CheckpointState, Cursor, latest_checkpoint, load_checkpoint, save_checkpoint
from linvt.training.config import TrainConfig
from linvt.training.context import TrainContext
from linvt.training.data import Source, VisitSet, open_sources, plan_visits, require_one_token_count
from linvt.training.engine import Engine
from linvt.training.flops import FlopCounter
from linvt.training.guards import Guards, ScoreWatch
from linvt.training.metrics import Meter, MetricsLog
from linvt.training.model import build_model, sequence_rules
from linvt.training.order import SampleStream, share_of_rank
from linvt.training.schedule import learning_rate_at
from linvt.training.validation import validate

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model"


def train(config: TrainConfig, context: TrainContext) -> bool:
    """Train to the end, from the latest checkpoint in the run's folder if there is one.

    Rank 0 leaves `metrics.jsonl`, the last checkpoint, `model/` and, with validation, `best`. Returns False
    where a worker was asked to stop before the end: a checkpoint of the step that it was in is then there. Raises
    ValueError for data that the stage cannot learn from, FloatingPointError for a loss or gradient that is not finite,
    TrainingFailed for a run that goes nowhere (`linvt.training.guards`).
    """
    # Data
    torch.set_num_threads(config.threads_per_worker)
    is_first = context.rank == 0
    visits = load_visits(config)
    held_out = load_held_out_visits(config)
    is_image = visits.is_image
    if config.zero_stage == 3 and is_image.any() and context.world_size > 1:
        raise ValueError("--zero-stage 3 needs every worker to run LinVT in every step; leave the images out or use 2")
    num_steps = count_steps(config, visits)
    stream = SampleStream(
        visits.shards,
        visits.lengths,
        seed=config.seed,
        window_shards=config.window_shards,
        batch_size=config.visits_per_batch,
        source_of_sample=visits.sources,
        weights=visits.weights,
    )

    # Model
    model = build_model(config, context.device)
    if visits.cache.hidden_size != model.backbone.hidden_size:
        raise ValueError(
            f"--cache {config.cache} holds tokens of C = {visits.cache.hidden_size}, --backbone {config.backbone} has "
            f"C = {model.backbone.hidden_size}; train with the backbone that the cache was made with"
        )
    rules = sequence_rules(config, model)
    flop_counter = FlopCounter(model)
    score_watch = ScoreWatch(model.video_tokenizer)
    engine = Engine(model, config)
    if is_first:
        num_trainable = sum(math.prod(shape) for shape in engine.shapes.values())
        logger.info("%d visits, %d steps, %d trainable parameters", len(visits), num_steps, num_trainable)

    # Resume
    state = CheckpointState(cursor=Cursor(step=0, samples_consumed=0, epoch=0), data_fingerprint=visits.fingerprint)
    found = latest_checkpoint(context.run_dir)
    if found is not None:
        state, tensors = load_checkpoint(found)
        if state.data_fingerprint != visits.fingerprint:
            raise ValueError(f"{found} was trained on other samples; the annotations or the cache have changed since")
        engine.load_state(tensors, step=state.cursor.step)
        if is_first:
            logger.info("resumed at step %d of %d", state.cursor.step, num_steps)
    cursor, best, guards = state.cursor, state.best, Guards(config, state.guards)
    saved_step = cursor.step
    log = MetricsLog(context.run_dir, after_step=cursor.step) if is_first else None

    def load_batch(step: int) -> list[Batch]:
        """This worker's samples of a step, in parts."""
        numbers = stream.batch(step * config.visits_per_batch)
        # Videos first, so that every worker gets its share of them and none has images only.
        numbers = numbers[is_image[numbers].argsort(kind="stable")]
        mine = share_of_rank(numbers, context.rank, context.world_size)
        return [
            collate([visits.load(int(number)) for number in part], model.backbone, rules)
            for part in split_share(mine, config.micro_batch)
        ]

    def save_model(folder: Path) -> None:
        model.save_pretrained(folder, extraction=_extraction_of(visits.cache))

    # Steps
    meter = Meter()
    batches = read_ahead(load_batch, range(cursor.step, num_steps), depth=config.prefetch_batches)
    for step in range(cursor.step, num_steps):
        asked_at = time.perf_counter()
        parts = [part.to(context.device) for part in next(batches)]
        waited_s = time.perf_counter() - asked_at

        # Forward and backward. What is told of them are sums over all workers.
        output = forward_backward(
            engine,
            parts,
            config,
            seed_of_part=partial(_seed_of, config.seed, step, context.rank),
            uses_all=not is_image.any(),
        )
        all_nll, all_answer_tokens, all_contrastive, all_videos, all_tokens, all_flops, *all_else = _sum_over_ranks(
            output.answer_nll,
            output.answer_tokens,
            output.contrastive * output.num_videos,
            output.num_videos,
            sum(map(flop_counter.sequence_tokens, parts)),
            sum(flop_counter.flops(part, answer_tokens=part.answer_tokens) for part in parts),
            *score_watch.take(),
            context.stop_requested(),
            device=context.device,
        )
        videos_selecting, videos_parted, score_spread, must_stop = all_else
        losses = {"loss_answer": all_nll / all_answer_tokens}
        if config.is_contrastive:
            losses["loss_contrastive"] = all_contrastive / max(all_videos, 1.0)
        total = losses["loss_answer"] + config.contrastive_weight * losses.get("loss_contrastive", 0.0)
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss of step {step + 1} is not finite ({losses}); weights are as they were before it, and the "
                f"latest checkpoint is of step {saved_step}. Lower --learning-rate, or look at this step's samples"
            )

        # Update
        learning_rate = learning_rate_at(
            step,
            num_steps=num_steps,
            warmup_steps=config.warmup_steps,
            learning_rate=config.learning_rate,
            min_learning_rate=config.min_learning_rate,
        )
        grad_norm = engine.update(learning_rate)
        done = step + 1
        engine.average(done)
        samples_consumed = done * config.visits_per_batch
        cursor = Cursor(
            step=done, samples_consumed=samples_consumed, epoch=samples_consumed // stream.samples_per_epoch
        )
        meter.count(tokens=all_tokens, samples=config.visits_per_batch, flops=all_flops, waited_s=waited_s)
        is_last = done == num_steps

        # Look
        if step == 0 or done % config.log_every == 0 or is_last:
            metrics = {
                "step": done,
                "samples": cursor.samples_consumed,
                "epoch": cursor.samples_consumed / stream.samples_per_epoch,
                "loss": total,
                **losses,
                "learning_rate": learning_rate,
                "grad_norm": grad_norm,
                **({"score_spread": score_spread / videos_selecting} if videos_selecting else {}),
                **meter.rates(world_size=context.world_size, peak_flops_per_s=config.peak_flops_per_s),
            }
            if log is not None:
                log.write(metrics)
                logger.info("step %d/%d %s", done, num_steps, _shown(metrics))
            context.report(metrics)
        guards.check(done, loss=total, videos_selecting=videos_selecting, videos_parted=videos_parted)
        if held_out is not None and (done % config.eval_every == 0 or is_last):
            meter.pause()
            with engine.averaged():
                metrics = validate(
                    engine.model,
                    held_out,
                    context,
                    batch_size=max(1, config.visits_per_batch // context.world_size),
                    max_visits=config.eval_visits,
                    max_answers=config.answers_in_validation,
                    gradient_checkpointing=config.gradient_checkpointing,
                )
                if is_better(metrics[config.best_by], best, config.best_by):
                    best = Best(step=done, value=metrics[config.best_by])
                    with engine.gathered_weights():
                        if is_first:
                            save_best(context.run_dir, done, save_model)
            if log is not None:
                log.write({"step": done, **metrics})
                logger.info("step %d/%d %s", done, num_steps, _shown(metrics))
            context.report({"step": done, **metrics})
            meter.resume()

        # Save
        if done % config.save_every == 0 or is_last or must_stop:
            meter.pause()
            tensors = engine.gather_state()
            if is_first:
                state = replace(state, cursor=cursor, best=best, guards=guards.state)
                path = save_checkpoint(context.run_dir, state, tensors)
                logger.info("saved %s", path)
            saved_step = done
            meter.resume()
        if must_stop and not is_last:
            break
    batches.close()

    # Finish
    if cursor.step == num_steps:
        with engine.averaged(), engine.gathered_weights():
            if is_first:
                save_model(context.run_dir / MODEL_FOLDER)
    if log is not None:
        log.close()
    # Nobody leaves, and ends the process group, before the model is written.
    dist.barrier()
    return cursor.step == num_steps


def load_visits(config: TrainConfig) -> VisitSet:
    """The run's samples. Raises ValueError as `plan_visits` does."""
    sources = open_sources(
        config.annotations,
        formats=config.format,
        weights=config.mixture_weights,
        media_prefixes=config.media_prefix,
    )
    return _load_visits(config, config.cache, sources)


def load_held_out_visits(config: TrainConfig) -> VisitSet | None:
    """The samples of validation; None where the config names none."""
    if not config.eval_annotations:
        return None
    formats = config.eval_format or (config.format if len(config.format) == 1 else (AUTO,))
    prefixes = config.eval_media_prefix or (config.media_prefix if len(config.media_prefix) == 1 else ("",))
    sources = open_sources(config.eval_annotations, formats=formats, weights=(), media_prefixes=prefixes)
    return _load_visits(config, config.eval_cache or config.cache, sources)


def _load_visits(config: TrainConfig, cache_uri: str, sources: list[Source]) -> VisitSet:
    cache = read_cache(cache_uri)
    require_one_token_count(cache)
    return plan_visits(
        cache,
        sources,
        stage=config.stage,
        turns_per_visit=config.turns_per_visit,
        max_left_out_share=config.max_left_out_share,
        length_grouping=config.length_grouping,
    )


def count_steps(config: TrainConfig, visits: VisitSet) -> int:
    """Optimizer steps of the whole run."""
    if config.steps is not None:
        return config.steps
    return math.ceil(config.epochs * visits.samples_per_epoch / config.visits_per_batch)


def first_and_last_loss(metrics: list[dict[str, Any]]) -> tuple[float, float]:
    """Of a run's metrics: the loss of its first step, and the mean of its last tenth of logged ones."""
    losses = [line["loss"] for line in metrics if "loss" in line]
    last = losses[-max(1, len(losses) // 10) :]
    return losses[0], sum(last) / len(last)


def _sum_over_ranks(*values: Tensor | float, device: torch.device) -> list[float]:
    sums = torch.tensor([float(v.detach()) if isinstance(v, Tensor) else float(v) for v in values], dtype=torch.float64)
    sums = sums.to(device)
    dist.all_reduce(sums)
    return sums.tolist()


def _seed_of(seed: int, step: int, rank: int, part: int) -> int:
    """Another seed for the dropout of every step, rank and part; the step's own, so no random state has to be saved."""
    return ((seed * 1_000_003 + step) * 65_537 + rank + (part << 40)) % 2**63


def _extraction_of(cache: Cache) -> dict[str, Any]:
    """How the frames that the model was trained on were made, as the cache remembers it."""
    if cache.storage.size_bytes(EXTRACTION) is None:
        return {"feature_id": cache.feature_id}
    return json.loads(cache.storage.read(EXTRACTION))


def _shown(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "step")
