"""One sample's bytes: `<key>.json` and `<key>.tokens.safetensors`, and back.

Shapes: T frames, N tokens a frame, C channels, S shots.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from linvt.shards.layout import CacheDtype


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleInfo:
    """What `<key>.json` holds. Nothing in it depends on when, where or how fast the sample was made."""

    key: str
    video_id: str
    uri: str
    sha256: str
    """Of the media file's bytes."""
    kind: Literal["video", "image"]
    grid: tuple[int, int] | None
    """(H, W) of a frame's tokens in row-major order, H·W = N; None where they are an unordered set."""
    timestamps_s: tuple[float, ...]
    """T presentation times, in seconds."""
    duration_s: float
    shots: tuple[tuple[float, float], ...]
    """S stretches [start, end) of the video, in seconds."""
    shot_index: tuple[int, ...]
    """T indices into `shots`. A frame inside a gradual transition, in no shot, counts to the one before it."""
    feature_id: str

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "SampleInfo":
        fields = json.loads(data)
        return cls(
            **fields
            | {
                "grid": None if fields["grid"] is None else tuple(fields["grid"]),
                "timestamps_s": tuple(fields["timestamps_s"]),
                "shots": tuple((start_s, end_s) for start_s, end_s in fields["shots"]),
                "shot_index": tuple(fields["shot_index"]),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CachedVideo:
    """A video's (or an image's) frame tokens as training and serving use them."""

    key: str
    video_id: str
    uri: str
    sha256: str
    kind: Literal["video", "image"]
    tokens: torch.Tensor
    """bfloat16 [T, N, C]; an int8 cache is dequantised."""
    grid: tuple[int, int] | None
    timestamps_s: np.ndarray
    """float64 [T]."""
    duration_s: float
    shots: np.ndarray
    """float64 [S, 2], start and end in seconds."""
    shot_index: np.ndarray
    """int64 [T], the shot that each frame lies in."""
    feature_id: str

    def __post_init__(self) -> None:
        num_frames = len(self.tokens)
        if self.tokens.ndim != 3 or len(self.timestamps_s) != num_frames or len(self.shot_index) != num_frames:
            raise ValueError(
                f"{self.video_id}: tokens {tuple(self.tokens.shape)}, expected [T, N, C] with T = "
                f"{len(self.timestamps_s)} timestamps = {len(self.shot_index)} shot indices"
            )
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens.shape[1]:
            raise ValueError(f"{self.video_id}: grid {self.grid} does not have {self.tokens.shape[1]} patches")

    @classmethod
    def from_bytes(cls, info_json: bytes, tokens_safetensors: bytes) -> "CachedVideo":
        info = SampleInfo.from_json(info_json)
        return cls.from_info(info, tokens_from_bytes(tokens_safetensors))

    @classmethod
    def from_info(cls, info: SampleInfo, tokens: torch.Tensor) -> "CachedVideo":
        return cls(
            key=info.key,
            video_id=info.video_id,
            uri=info.uri,
            sha256=info.sha256,
            kind=info.kind,
            tokens=tokens,
            grid=info.grid,
            timestamps_s=np.array(info.timestamps_s, np.float64),
            duration_s=info.duration_s,
            shots=np.array(info.shots, np.float64).reshape(-1, 2),
            shot_index=np.array(info.shot_index, np.int64),
            feature_id=info.feature_id,
        )


def tokens_to_bytes(tokens_TNC: torch.Tensor, dtype: CacheDtype) -> bytes:
    """Frame tokens [T, N, C] of any float type as a safetensors file.

    "bf16": one tensor "tokens", bfloat16. "int8": "tokens" int8 and "scales" float32 [T, N], a token being
    scale · int8 with scale = max |channel| / 127.
    """
    if dtype == "bf16":
        return save({"tokens": tokens_TNC.to(torch.bfloat16).contiguous()})
    if dtype != "int8":
        raise ValueError(f"cache dtype {dtype!r}; valid: {get_args(CacheDtype)}")
    values = tokens_TNC.float()
    scales_TN = values.abs().amax(-1) / 127
    divisor = torch.where(scales_TN > 0, scales_TN, 1).unsqueeze(-1)
    quantised = (values / divisor).round().clamp(-127, 127).to(torch.int8)
    return save({"tokens": quantised.contiguous(), "scales": scales_TN.contiguous()})


def tokens_from_bytes(data: bytes) -> torch.Tensor:
    """bfloat16 [T, N, C] of `tokens_to_bytes`. Raises ValueError for a file that is not one."""
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    names = set(tensors)
    if names == {"tokens", "scales"}:
        return _dequantised(tensors["tokens"], tensors["scales"])
    if names != {"tokens"}:
        raise ValueError(f"a tokens file holds 'tokens' and perhaps 'scales', got {sorted(names)}")
    return tensors["tokens"]


def _dequantised(tokens_TNC: torch.Tensor, scales_TN: torch.Tensor) -> torch.Tensor:
    restored_TNC = torch.empty(tokens_TNC.shape, dtype=torch.bfloat16)
    # A frame's float32 products stay in the processor's cache; all at once, they take sixteen times as long.
    for restored_NC, tokens_NC, scales_N in zip(restored_TNC, tokens_TNC, scales_TN):
        restored_NC.copy_(tokens_NC * scales_N.unsqueeze(-1))
    return restored_TNC
