"""Golden checkpoints altered as a wrong step would, how far that leads, and decoding step by step."""

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from linvt.serving.batching import Batcher, Row
from linvt.serving.sampling import Sampling

Tensors = dict[str, Tensor]


def altered(
    golden: Path,
    directory: Path,
    *,
    config: dict[str, Any] | None = None,
    tensors: Callable[[Tensors], Any] | None = None,
) -> Path:
    """A copy of a checkpoint: `config` is merged over its config.json, `tensors` changes what it is given in place."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in golden.glob("*.json"):
        shutil.copyfile(file, directory / file.name)
    merged = _merge(json.loads((golden / "config.json").read_text()), config or {})
    (directory / "config.json").write_text(json.dumps(merged))
    stored = load_file(golden / "model.safetensors")
    if tensors is not None:
        tensors(stored)
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in stored.items()},
        directory / "model.safetensors",
    )
    return directory


def distance(backbone: Any, golden: Tensors) -> float:
    """The largest difference to the golden frame tokens and logits."""
    actual = {
        "frame_tokens": backbone.encode_pixels(golden["pixel_values"]),
        "logits": logits(backbone, backbone.embed(golden["input_ids"])),
        "spliced_logits": logits(backbone, golden["spliced_embeds"]),
    }
    return max((tensor - golden[name]).abs().max().item() for name, tensor in actual.items())


def logits(backbone: Any, embeds: Tensor) -> Tensor:
    """[B, L, V] of embeddings [B, L, C] without padding."""
    return backbone.head(backbone.hidden_states(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool)))


def greedy(backbone: Any, embeds: Tensor, *, steps: int) -> list[int]:
    """Continues embeddings [1, L, C], each step from scratch."""
    ids: list[int] = []
    while len(ids) < steps:
        next_id = int(logits(backbone, embeds)[0, -1].argmax())
        if next_id in backbone.stop_ids:
            break
        ids.append(next_id)
        embeds = torch.cat([embeds, backbone.embed(torch.tensor([[next_id]]))], dim=1)
    return ids


def batched(backbone: Any, prompts: Sequence[tuple[Tensor, int]], *, max_rows: int) -> list[list[int]]:
    """Continues embeddings [L, C] by a number of tokens each, in one batch that they join and leave."""
    with contextlib.closing(Batcher(backbone, max_rows=max_rows)) as batcher:
        futures = [
            batcher.submit(Row(prompt=row, max_new_tokens=tokens, sampling=Sampling(), on_token=lambda _: False))
            for row, tokens in prompts
        ]
        return [future.result().ids for future in futures]


def left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings [1, L, C] of several lengths as a batch [B, longest L, C], and its mask; the padding is not zero."""
    length = max(row.shape[1] for row in rows)
    embeds = torch.full((len(rows), length, rows[0].shape[-1]), 7.0)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        embeds[i, length - row.shape[1] :], mask[i, length - row.shape[1] :] = row[0], True
    return embeds, mask


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: _merge(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()
    }
    return base | both
