"""A small cache, annotations for it and a tiny image-LLM: what a training run needs, in a folder."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from linvt.shards.commit import PendingSample
from linvt.shards.index import write_index
from linvt.shards.storage import open_storage
from linvt.training.config import TrainConfig
from tests.shards.cache_builder import pending_sample, write_one_shard
from tests.tiny_models import save_tiny_llava

COLOURS = ("red", "blue", "green", "yellow")
HIDDEN_SIZE = 64
TOKENS_PER_FRAME = 4


@dataclass(frozen=True, slots=True)
class Inputs:
    cache: str
    annotations: str
    backbone: str


def write_inputs(folder: Path, *, num_videos: int = 14, num_images: int = 0, nan_video: int | None = None) -> Inputs:
    """Videos of 3 to 5 frames whose tokens point in the direction of a colour; captions and questions name it."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(len(COLOURS), HIDDEN_SIZE, generator=generator)
    samples: list[PendingSample] = []
    rows: list[dict[str, Any]] = []
    for i in range(num_videos + num_images):
        is_image, colour = i >= num_videos, i % len(COLOURS)
        num_frames = 1 if is_image else 3 + i % 3
        tokens = directions[colour] + 0.3 * torch.randn(num_frames, TOKENS_PER_FRAME, HIDDEN_SIZE, generator=generator)
        if i == nan_video:
            tokens[0, 0, 0] = float("nan")
        name = f"images/{i:03d}.png" if is_image else f"videos/{i:03d}.mp4"
        sample = pending_sample(name, tokens, slot=i)
        samples.append(_as_image(sample) if is_image else sample)
        rows.append(annotation_row(name, COLOURS[colour], is_image=is_image))
    storage = open_storage(str(folder / "cache"))
    shards = [samples[start : start + 4] for start in range(0, len(samples), 4)]
    write_index(storage, [write_one_shard(storage, shard, members) for shard, members in enumerate(shards)])
    write_rows(folder / "annotations.jsonl", rows)
    backbone = save_tiny_llava(folder / "backbone", hidden_size=HIDDEN_SIZE)
    return Inputs(str(folder / "cache"), str(folder / "annotations.jsonl"), str(backbone))


def annotation_row(name: str, colour: str, *, is_image: bool = False) -> dict[str, Any]:
    return {
        "media": name,
        "kind": "image" if is_image else "video",
        "caption": f"a {colour} ball",
        "qa": [
            {"question": "what color is the ball ?", "answer": colour},
            {"question": "is it red ?", "answer": "yes" if colour == "red" else "no"},
            {"question": "is it blue ?", "answer": "yes" if colour == "blue" else "no"},
        ],
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def small_config(inputs: Inputs, out: Path | str, **changes: Any) -> TrainConfig:
    """A run of six steps."""
    config = TrainConfig(
        stage=1,
        cache=inputs.cache,
        annotations=(inputs.annotations,),
        backbone=inputs.backbone,
        out=str(out),
        steps=6,
        visits_per_batch=4,
        turns_per_visit=2,
        window_shards=2,
        linvt_top_k=8,
        linvt_num_queries=(4, 2),
        linvt_windows=(1, 2),
        linvt_num_layers=1,
        linvt_num_heads=4,
        learning_rate=3e-3,
        warmup_steps=2,
        lora_rank=2,
        save_every=2,
        log_every=1,
        num_workers="0",
        max_failures=0,
    )
    return replace(config, **changes)


def _as_image(sample: PendingSample) -> PendingSample:
    info_json, tokens = sample.load()
    as_image = json.dumps(json.loads(info_json) | {"kind": "image"}).encode()
    return replace(sample, kind="image", load=lambda: (as_image, tokens))
