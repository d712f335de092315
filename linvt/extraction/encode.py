"""The second half of the work on one input: from its frames to the bytes of its sample.

Shapes: T frames, N tokens a frame, C channels.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from linvt.backbones import Backbone
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.rows import VideoRow
from linvt.shards.sample import SampleInfo, tokens_to_bytes

# Image processors may refuse pictures that are thinner (beyond 200:1 in Qwen's) or smaller than a patch.
_THIN_ASPECT, _SMALL_SIDE = 50, 32


def encode_input(
    row: VideoRow, frames: np.ndarray, backbone: Backbone, spec: FeatureSpec, *, batch_size: int, device: str
) -> tuple[VideoRow, bytes | None, bytes | None]:
    """(row, info JSON, tokens safetensors) of an input's frames, uint8 [T, H, W, 3].

    Batches are made inside the video and padded to `batch_size`. Frames of a shape that the image-LLM refuses, and
    tokens that are not finite, quarantine the input.
    """
    started = time.perf_counter()
    assert row.kind is not None
    try:
        encoded = backbone.encode_frames(frames, batch_size=batch_size, kind=row.kind)
    except ValueError as error:
        _, height, width, _ = frames.shape
        if min(height, width) >= _SMALL_SIDE and max(height, width) <= _THIN_ASPECT * min(height, width):
            raise  # What is refused is not the shape of these frames.
        message = f"the image-LLM takes no frames of {width}x{height}: {error}"
        return row.quarantined("encode", "FramesRefused", message), None, None
    tokens_TNC = encoded.tokens.cpu()
    row = replace(row, device=device, encode_s=time.perf_counter() - started)
    if not torch.isfinite(tokens_TNC).all():
        message = f"{int((~torch.isfinite(tokens_TNC)).sum())} of {tokens_TNC.numel()} token values are not finite"
        return row.quarantined("encode", "NonFiniteTokens", message), None, None
    row = replace(
        row,
        tokens_per_frame=tokens_TNC.shape[1],
        hidden_size=tokens_TNC.shape[2],
        grid=list(encoded.grid) if encoded.grid else None,
    )
    info = _sample_info(row, spec)
    return row, info.to_json(), tokens_to_bytes(tokens_TNC, spec.cache_dtype)


def _sample_info(row: VideoRow, spec: FeatureSpec) -> SampleInfo:
    assert row.key is not None
    assert row.sha256 is not None
    assert row.kind is not None
    assert row.duration_s is not None
    return SampleInfo(
        key=row.key,
        video_id=row.video_id,
        uri=row.uri,
        sha256=row.sha256,
        kind=row.kind,
        grid=(row.grid[0], row.grid[1]) if row.grid else None,
        timestamps_s=tuple(row.kept_timestamps_s),
        duration_s=row.duration_s,
        shots=tuple((start_s, end_s) for start_s, end_s in row.shots_s),
        shot_index=tuple(row.kept_shot_index),
        feature_id=spec.feature_id,
    )
