"""What an int8 cache costs and saves, against bfloat16 of the same tokens.

    python benchmarks/int8_cache.py [GOLDEN ...]

- quality: frame tokens stored in either type and read back, against the float32 that the vision side gave. Cosine of
  each token (mean and worst); and the LLM's logits behind them, KL divergence in nats a position (mean and worst) from
  those behind float32 tokens. On the embedded image-LLM with rendered scenes, and on the checkpoints in the folders
  given (config.json, model.safetensors, golden.safetensors; by default all of tests/golden).
- reading: random access to 32 samples of 64×256×896 tokens of each cache, rounds taken in turn, one thread.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from linvt.backbones import load_backbone
from linvt.shards import read_cache
from linvt.shards.commit import PendingSample, commit_shard, write_shard
from linvt.shards.index import write_index
from linvt.shards.layout import CacheDtype, sample_key
from linvt.shards.sample import SampleInfo, tokens_from_bytes, tokens_to_bytes
from linvt.shards.storage import open_storage
from linvt.tiny.scene import random_scene, render

ROOT = Path(__file__).resolve().parent.parent
DTYPES: tuple[CacheDtype, ...] = ("bf16", "int8")
SCENES, SAMPLES, SHAPE, ROUNDS = 64, 32, (64, 256, 896), 3


def main() -> None:
    torch.set_num_threads(1)
    goldens = [Path(folder) for folder in sys.argv[1:]] or sorted((ROOT / "tests/golden").glob("*"))
    print("model            cache   bytes    cosine mean, worst        KL mean, worst")
    embedded()
    for folder in goldens:
        tensors = load_file(folder / "golden.safetensors")
        if "frame_tokens" in tensors and (folder / "model.safetensors").exists():
            golden(folder, tensors)
    with tempfile.TemporaryDirectory() as folder:
        reading(Path(folder))


def embedded() -> None:
    backbone = load_backbone("tiny")
    rng = np.random.default_rng(0)
    frames = np.stack([render(random_scene(rng), 96) for _ in range(SCENES)])
    tokens_TNC = backbone.encode_frames(frames).tokens
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe the image ."}]},
    ]
    prompt = backbone.prompt(messages)
    before, after = (backbone.embed(torch.tensor(ids)) for ids in (prompt.before, prompt.after))
    report("embedded", backbone, tokens_TNC, before, after)


def golden(folder: Path, tensors: dict[str, Tensor]) -> None:
    backbone = load_backbone(str(folder), parts={"llm"})
    before, after = (backbone.embed(tensors[name]) for name in ("prefix_ids", "suffix_ids"))
    report(folder.name, backbone, tensors["frame_tokens"], before, after)


@torch.no_grad()
def report(name: str, backbone: Any, tokens_TNC: Tensor, before: Tensor, after: Tensor) -> None:
    expected = _log_probabilities(backbone, tokens_TNC, before, after)
    for dtype in DTYPES:
        stored = tokens_to_bytes(tokens_TNC, dtype)
        restored_TNC = tokens_from_bytes(stored).float()
        cosine = F.cosine_similarity(restored_TNC, tokens_TNC, dim=-1)
        found = _log_probabilities(backbone, restored_TNC, before, after)
        kl = F.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
        print(
            f"{name:16} {dtype:5} {len(stored):9,}  {cosine.mean():.6f}, {cosine.min():.6f}  "
            f"{kl.mean():.1e}, {kl.max():.1e}",
            flush=True,
        )


def _log_probabilities(backbone: Any, tokens_TNC: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """[T, after, V]: next-token log-probabilities of what follows each frame's tokens."""
    rows = torch.stack([torch.cat([before, tokens_NC, after]) for tokens_NC in tokens_TNC])
    hidden = backbone.hidden_states(rows, torch.ones(rows.shape[:2], dtype=torch.bool))
    return backbone.head(hidden[:, -len(after) :]).log_softmax(-1)


def reading(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    videos = [torch.randn(SHAPE, generator=generator) for _ in range(4)]
    caches = {}
    for dtype in DTYPES:
        _write(folder / dtype, videos, dtype)
        caches[dtype] = read_cache(str(folder / dtype))
    seconds = dict.fromkeys(DTYPES, 0.0)
    for _ in range(ROUNDS):
        for dtype, cache in caches.items():
            started = time.perf_counter()
            for key in cache.keys:
                cache.get(key)
            seconds[dtype] += time.perf_counter() - started
    tokens = ROUNDS * SAMPLES * SHAPE[0] * SHAPE[1]
    rate = {dtype: tokens / seconds[dtype] / 1e6 for dtype in DTYPES}
    size = {dtype: sum(f.stat().st_size for f in (folder / dtype / "shards").glob("*.tar")) for dtype in DTYPES}
    print(f"\nreading, million tokens of 896 channels a second: bf16 {rate['bf16']:.2f}, int8 {rate['int8']:.2f}")
    print(f"int8 / bf16: bytes {size['int8'] / size['bf16']:.3f}, speed {rate['int8'] / rate['bf16']:.2f}")


def _write(folder: Path, videos: list[Tensor], dtype: CacheDtype) -> None:
    storage = open_storage(str(folder))
    samples = []
    for slot in range(SAMPLES):
        sha256 = f"{slot:064x}"
        info = SampleInfo(
            key=sample_key(sha256, f"{slot}.mp4"),
            video_id=f"{slot}.mp4",
            uri=f"{slot}.mp4",
            sha256=sha256,
            kind="video",
            grid=None,
            timestamps_s=tuple(map(float, range(SHAPE[0]))),
            duration_s=float(SHAPE[0]),
            shots=((0.0, float(SHAPE[0])),),
            shot_index=(0,) * SHAPE[0],
            feature_id="f" * 32,
        )
        content = (info.to_json(), tokens_to_bytes(videos[slot % len(videos)], dtype))
        samples.append(
            PendingSample(
                slot=slot,
                key=info.key,
                video_id=info.video_id,
                uri=info.uri,
                sha256=sha256,
                kind="video",
                shape=SHAPE,
                grid=None,
                duration_s=info.duration_s,
                load=lambda content=content: content,
            )
        )
    record = write_shard(
        storage,
        shard=0,
        generation=0,
        plan_hash="0" * 64,
        feature_id="f" * 32,
        devices=["cpu"],
        samples=samples,
        tombstones=(),
        num_slots=SAMPLES,
    )
    commit_shard(storage, record)
    write_index(storage, [record])


if __name__ == "__main__":
    main()
