"""Writes small caches through the real writer, from tokens made by hand."""

from pathlib import Path

import torch

from linvt.shards.commit import CommitRecord, PendingSample, Tombstone, commit_shard, write_shard
from linvt.shards.index import write_index
from linvt.shards.layout import CacheDtype, sample_key
from linvt.shards.sample import SampleInfo, tokens_to_bytes
from linvt.shards.storage import Storage, open_storage

FEATURE_ID = "f" * 32


def pending_sample(video_id: str, tokens_TNC: torch.Tensor, *, slot: int, dtype: CacheDtype = "bf16") -> PendingSample:
    num_frames, num_tokens, _ = tokens_TNC.shape
    sha256 = f"{slot:064x}"
    key = sample_key(sha256, video_id)
    info = SampleInfo(
        key=key,
        video_id=video_id,
        uri=f"/videos/{video_id}",
        sha256=sha256,
        kind="video",
        grid=(1, num_tokens),
        timestamps_s=tuple(0.5 * i for i in range(num_frames)),
        duration_s=0.5 * num_frames,
        shots=((0.0, 0.5), (0.5, 0.5 * num_frames)),
        shot_index=tuple(min(i, 1) for i in range(num_frames)),
        feature_id=FEATURE_ID,
    )
    return PendingSample(
        slot=slot,
        key=key,
        video_id=video_id,
        uri=info.uri,
        sha256=sha256,
        kind="video",
        shape=(num_frames, num_tokens, tokens_TNC.shape[2]),
        grid=info.grid,
        duration_s=info.duration_s,
        load=lambda: (info.to_json(), tokens_to_bytes(tokens_TNC, dtype)),
    )


def write_one_shard(
    storage: Storage, shard: int, samples: list[PendingSample], tombstones: tuple[Tombstone, ...] = ()
) -> CommitRecord:
    record = write_shard(
        storage,
        shard=shard,
        generation=0,
        plan_hash="0" * 64,
        feature_id=FEATURE_ID,
        devices=["cpu AVX2"],
        samples=samples,
        tombstones=tombstones,
        num_slots=len(samples) + len(tombstones),
    )
    commit_shard(storage, record)
    return record


def save_cache(directory: Path | str, tokens_of_id: dict[str, torch.Tensor], *, samples_per_shard: int = 2) -> None:
    """A finished cache of these tokens [T, N, C]."""
    storage = open_storage(str(directory))
    samples = [pending_sample(video_id, tokens, slot=i) for i, (video_id, tokens) in enumerate(tokens_of_id.items())]
    records = [
        write_one_shard(storage, shard, samples[start : start + samples_per_shard])
        for shard, start in enumerate(range(0, len(samples), samples_per_shard))
    ]
    write_index(storage, records)
