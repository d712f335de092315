"""What an estimate can be asked for. Imports neither torch nor ray."""

from dataclasses import dataclass, field
from typing import Literal

from linvt.shards.layout import CacheDtype


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimateConfig:
    """Storage, traffic, hours and money of extraction and both training stages, and the same without a cache."""

    videos: str
    """How many videos there are; or what jobs/extract_features.py takes as --videos, of which a hundred are looked
    into."""
    backbone: str
    """aquila-vl-2b, blip-3, internvl2-1b, internvl2-8b, mipha-1.6b, molmo-7b-d, qwen2-vl-2b, qwen2-vl-7b; with
    --calibrate also tiny, a directory or a hub id."""
    mean_seconds: float = 60.0
    """Mean length of a video; ignored where --videos names files."""
    width: int = 640
    """Pixels of a video's frame; ignored where --videos names files."""
    height: int = 360
    """Pixels of a video's frame; ignored where --videos names files."""
    frame_rate: float = 30.0
    """Frames a second of a video; ignored where --videos names files."""
    video_megabits_per_s: float = 1.0
    """Mean bit rate of a video; ignored where --videos names files."""
    media_root: str | None = None
    """As for extraction, where --videos names files."""
    num_frames: int = 64
    """Frames kept of a video."""
    cache_dtype: CacheDtype = "bf16"
    """How tokens are stored."""
    samples_per_shard: int = 64
    """Inputs per shard."""
    encode_batch_size: int = 16
    """Frames per forward pass; a video's last batch is padded to it."""
    detector: Literal["transnetv2", "none"] = "transnetv2"
    """Shot detector."""

    # Training
    stage1_videos: int | None = None
    """Videos with captions, each visited once per epoch; by default all."""
    stage1_epochs: float = 1.0
    """Passes of stage 1."""
    stage2_videos: int | None = None
    """Visits of stage 2 per epoch: videos with questions; by default all."""
    stage2_epochs: float = 1.0
    """Passes of stage 2."""
    turns_per_visit: int = 1
    """Questions of a visit in stage 2."""
    text_tokens: int = 80
    """Text tokens of a sequence (prompt, question, answer)."""
    answer_tokens: int = 30
    """Of these, the answer's; also what a caption has."""
    lora_rank: int = 16
    """Rank of the adapters of stage 2."""

    uncached_shots: bool = False
    """Compare with a run without a cache that finds shots once, beforehand, and keeps them; by default with one that
    spreads its frames evenly and needs none."""

    # Machines
    gpu: Literal["h200", "h100", "a100", "l40s", "l4"] = "h100"
    """Kind of GPU."""
    gpus: int = 8
    """GPUs that encode, and that train."""
    cpus: int = 128
    """Cores that decode and find shots, beside those that feed GPUs."""
    read_megabytes_per_s: float = 500.0
    """What one GPU's share of the storage gives in training."""

    # Prices, in whatever currency
    gpu_hour_price: float = 2.5
    """Of one GPU with the part of its machine that comes along. An example, not an offer: give yours."""
    cpu_hour_price: float = 0.04
    """Of one core. An example, not an offer: give yours."""
    storage_gb_month_price: float = 0.023
    """Of a GB in object storage for a month (S3 Standard's list price in us-east-1)."""
    storage_months: float = 1.0
    """How long the cache is kept."""
    request_price_per_1000: float = 0.0004
    """Of a thousand reads (S3 Standard's list price in us-east-1)."""
    put_price_per_1000: float = 0.005
    """Of a thousand writes (S3 Standard's list price in us-east-1)."""
    egress_gb_price: float = 0.0
    """Of a GB that leaves the storage: 0 inside a region, about 0.09 to elsewhere."""

    # Constants
    calibrate: bool = False
    """Measure the constants on this machine, with this backbone; minutes. They hold for machines like this one."""
    constants: str | None = None
    """A file with constants that --calibrate has written."""
    write_constants: str | None = None
    """Where --calibrate leaves its constants."""
    calibration_videos: tuple[str, ...] = field(default=())
    """Files to decode in --calibrate: yours tell most. By default two rendered ones of --width by --height."""

    def __post_init__(self) -> None:
        for name in (
            *("mean_seconds", "width", "height", "frame_rate", "num_frames", "samples_per_shard", "encode_batch_size"),
            *("turns_per_visit", "text_tokens", "answer_tokens", "lora_rank", "gpus", "cpus", "read_megabytes_per_s"),
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        for name in ("stage1_epochs", "stage2_epochs", "storage_months", "gpu_hour_price", "cpu_hour_price"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        if self.answer_tokens > self.text_tokens:
            raise ValueError(
                f"--text-tokens ({self.text_tokens}) includes --answer-tokens ({self.answer_tokens}), so it is no less"
            )
        if self.calibrate and self.constants:
            raise ValueError("--calibrate measures constants and --constants reads them: give one of the two")
