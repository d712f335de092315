"""What the endpoint can be told when it starts."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """An OpenAI-compatible endpoint for a trained model, until SIGINT or SIGTERM."""

    model: Path
    """Directory of a trained model (linvt.safetensors, config.json, adapter/); it names its image-LLM."""
    served_model_name: str = "linvt"
    """What requests call the model."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs --api-key-env, or --allow-anonymous."""
    port: int = 8000
    """Port to listen on."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key which clients must send."""
    allow_anonymous: bool = False
    """Serve without an API key on an address that others can reach."""
    num_replicas: str = "1"
    """Copies of the model: N, or MIN:MAX for as many as the requests need."""
    scale_up_delay_s: float = 10.0
    """With MIN:MAX: how long requests must have been too many before a copy is added."""
    max_batch: int = 8
    """Answers that each replica generates together."""
    num_cpus: float = 1.0
    """CPUs that Ray reserves for each replica."""
    num_gpus: float | None = None
    """GPUs that Ray reserves for each replica, 0.5 for two on one; by default one if the cluster has any."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights' type; auto: bfloat16 on a GPU, else float32."""
    num_frames: int | None = None
    """Frames sampled per video where the request does not say (media_io_kwargs.video); by default as many as the model
    was trained on."""
    max_frames: int = 256
    """Most frames a request may ask for."""
    detector: Literal["transnetv2", "autoshot", "none"] = "transnetv2"
    """Shot detector."""
    detector_weights: Path | None = None
    """AutoShot's weights, as for extraction: a file that every node can read."""
    max_new_tokens: int = 256
    """Longest answer, in tokens; requests may ask for less."""
    allowed_media_dir: tuple[Path, ...] = ()
    """Directories below which file:// URLs may read; every node must see them. None by default."""
    allowed_media_host: tuple[str, ...] = ()
    """Hosts (name or name:port) that http(s) URLs may reach although their addresses are private."""
    max_media_mb: int = 256
    """Largest video or image of a request."""
    max_duration_s: float = 3 * 3600.0
    """Longest video of a request."""
    max_frame_megapixels: float = 40.0
    """Largest video frame of a request."""
    max_media_parts: int = 16
    """Most videos and images in a request."""
    fetch_timeout_s: float = 60.0
    """Longest download of one video or image."""
    upload_timeout_s: float = 60.0
    """Longest time that a client may take to send its request."""
    num_decoders: int = 2
    """Videos that each replica decodes at a time, each in a process of its own."""
    decode_timeout_s: float = 600.0
    """Longest decoding of one video, shot detection included, after which its process is killed."""
    decode_memory_mb: int = 4096
    """Memory that decoding one video may take, beyond which it fails."""
    max_queued_requests: int = 16
    """Requests that may wait beside the max_batch of every replica; one more is answered 503 with Retry-After."""
    cache_gb: float = 4.0
    """Memory for encoded videos, per replica."""

    def __post_init__(self) -> None:
        if not 0 < (self.num_frames or 1) <= self.max_frames:
            raise ValueError(f"expected 0 < --num-frames ≤ --max-frames, got {self.num_frames} and {self.max_frames}")
        if min(self.max_batch, self.num_decoders, self.max_new_tokens) < 1 or self.max_queued_requests < 0:
            raise ValueError(
                "--max-batch, --num-decoders and --max-new-tokens must be at least 1, --max-queued-requests 0"
            )
        _ = self.replica_range
        if not (is_loopback(self.host) or self.api_key_env or self.allow_anonymous):
            raise ValueError(
                f"--host {self.host} lets other machines in: name the variable with their API key (--api-key-env), "
                "or say --allow-anonymous"
            )

    @property
    def replica_range(self) -> tuple[int, int]:
        """(fewest, most) of --num-replicas."""
        parts = self.num_replicas.split(":")
        if not (1 <= len(parts) <= 2 and all(part.isdecimal() for part in parts)):
            raise ValueError(f"--num-replicas must be N or MIN:MAX, got {self.num_replicas!r}")
        fewest, most = int(parts[0]), int(parts[-1])
        if not 1 <= fewest <= most:
            raise ValueError(f"--num-replicas must have 1 <= MIN <= MAX, got {self.num_replicas!r}")
        return fewest, most

    @property
    def max_requests(self) -> int:
        """Most requests in work."""
        return self.replica_range[1] * self.max_batch + self.max_queued_requests


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine's by itself, without being resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
