"""What an extraction can be asked for."""

from dataclasses import dataclass
from typing import Literal

from linvt.shards.layout import CacheDtype, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """Decode each video once, find its shots, encode its frames, and commit the tokens to shards."""

    videos: str
    """A folder (searched recursively), a glob, one media file, a list (.txt, one path or URI a line), or an annotation
    file (.jsonl with "media"); local or any URI that fsspec opens (s3://, gs://, …)."""
    backbone: str
    """The image-LLM: 'tiny', a directory, or a hub id. Only its vision part is loaded."""
    out: str
    """Where the cache goes: a folder or a URI."""
    media_root: str | None = None
    """The folder that relative paths in a list or an annotation file start from; by default the file's own folder."""
    frames_fps: float = 2.0
    """Frames a second of a folder of numbered JPEG or PNG files that a list or an annotation file names as one video; 2
    is ShareGPTVideo's rate."""
    num_frames: int = 64
    """Most frames to keep of a video, spread over its shots."""
    sampling: Sampling = "shots"
    """Which frames stand for a video. shots: at least one of every shot, the rest by duration; uniform: evenly spread
    over the whole; fps: as uniform, with --fps frames a second instead of --num-frames, which then bounds them."""
    fps: float | None = None
    """Frames a second to keep with --sampling fps."""
    samples_per_shard: int = 64
    """Inputs per shard."""
    detector: str = "transnetv2"
    """Shot detector: 'transnetv2', 'autoshot', or 'none' (the whole video is one shot)."""
    detector_weights: str | None = None
    """AutoShot's weights: the authors' ckpt_0_200_0.pth, which https://github.com/wentaozhu/AutoShot links to, or a
    .safetensors file with its tensors. A path that every node can read; all must hold the same there."""
    detector_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of TransNetV2's convolutions; auto: bfloat16 where the submitting machine's processor multiplies it
    natively (AVX-512 BF16, AMX), which is then more than twice as fast and finds the same cuts, else float32."""
    shot_threshold: float | None = None
    """Boundary probability above which a frame ends a shot; by default the detector's published one, 0.296 for
    AutoShot and 0.5 for TransNetV2."""
    cache_dtype: CacheDtype = "bf16"
    """How tokens are stored: bfloat16, or int8 with one scale a token."""
    max_side: int | None = None
    """Decoded frames are scaled down to at most this many pixels on the longer side; by default what the backbone's
    image processor can use."""
    max_candidates: int = 256
    """Most decoded frames of a video held in memory, evenly spread; the kept frames are chosen among them."""
    full_grid: bool = False
    """Keep every token of a frame where the model's own video path pools them: 27×27 instead of 14×14 for Aquila-VL."""
    frame_side: int | None = None
    """Pixels of the square that a video's frames are squeezed to, for models that take any shape (Qwen2-VL: 448, which
    gives 16×16 tokens). Images keep theirs."""
    reset_intermediate: int | None = None
    """Re-initialise the image-LLM's intermediate layer from this seed: the paper's "w/o alignment" (Table 3)."""
    encode_batch_size: int = 16
    """Frames per forward pass of the vision tower. Batches are made inside a video and padded to this size."""
    encode_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the vision tower; auto: bfloat16 on a GPU, else float32."""
    compile_encoder: bool = False
    """Compile the blocks of the vision tower (torch.compile): encoders start later, and encode faster where the model
    and the device profit. Tokens differ in their last bits, so a cache stays with one of the two."""
    threads_per_worker: int = 1
    """CPU threads of each worker. Part of what makes the bytes of a shard reproducible, so it is not adapted to the
    machine."""
    num_decode_workers: int | None = None
    """Processes that decode and detect shots; by default one per CPU that feeds no GPU."""
    num_encode_workers: int | None = None
    """Processes that encode; by default one per GPU, or one per four CPUs where there is no GPU."""
    gpus_per_encode_worker: float | None = None
    """Share of a GPU that an encoder claims, such as 0.5 for two on each GPU; by default they divide all GPUs evenly,
    at most one each."""
    videos_per_task: int = 4
    """Videos that travel together through Ray: more amortises scheduling, fewer balances long videos better."""
    decode_stall_timeout_s: float = 120.0
    """Seconds without any sign of life after which a decoding process is ended; three such attempts quarantine the
    input. Not a limit on the time that a long video takes."""
    decode_memory_mb: int = 4096
    """How much memory a decoding process may take (Linux); an input that needs more is quarantined."""
    stall_timeout_s: float = 4 * 3600.0
    """Seconds without any finished task after which the job fails; must exceed what the longest videos take."""
    on_existing: Literal["resume", "overwrite", "fail"] = "fail"
    """What to do where `out` holds an extraction already: go on with it, remove it first, or stop."""
    rethreshold: bool = False
    """On resume, go over to another --shot-threshold. Frames are chosen again from the stored boundary probabilities;
    only videos that keep other frames than before are decoded again. With --dry-run: how many those would be."""
    retry_quarantined: bool = False
    """On resume, extract the quarantined inputs again; what is committed stays as it is."""
    limit: int | None = None
    """Work on the first so many inputs only, in the order of their ids; a later run without it goes on."""
    max_errors: int | None = None
    """Stop with an error when more inputs than this were quarantined in this run; --on-existing resume goes on."""
    strict: bool = False
    """End with an error if any input is quarantined, after everything else was extracted."""
    verify_shards: bool = False
    """On resume, hash every committed shard instead of comparing sizes; reads the whole cache."""

    def __post_init__(self) -> None:
        for name in (
            "num_frames",
            "samples_per_shard",
            "max_side",
            "max_candidates",
            "encode_batch_size",
            "threads_per_worker",
            "num_decode_workers",
            "num_encode_workers",
            "videos_per_task",
            "decode_memory_mb",
            "decode_stall_timeout_s",
            "stall_timeout_s",
            "limit",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        share = self.gpus_per_encode_worker
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"--gpus-per-encode-worker must be above 0 and at most 1, got {share}")
        if (self.fps is not None) != (self.sampling == "fps"):
            raise ValueError(f"--sampling fps and --fps go together, got --sampling {self.sampling} and fps {self.fps}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"--fps must be positive, got {self.fps}")
        if not 0 < self.frames_fps <= 1000:
            raise ValueError(f"--frames-fps must lie between 0 and 1000, got {self.frames_fps}")
        if self.max_errors is not None and self.max_errors < 0:
            raise ValueError(f"--max-errors must not be negative, got {self.max_errors}")
        if self.detector == "autoshot" and self.detector_dtype == "bfloat16":
            raise ValueError("--detector-dtype bfloat16 is for --detector transnetv2; AutoShot computes in float32")
        if self.shot_threshold is not None and not 0 < self.shot_threshold < 1:
            raise ValueError(f"--shot-threshold must lie between 0 and 1, got {self.shot_threshold}")
        if self.rethreshold and self.on_existing != "resume":
            raise ValueError(f"--rethreshold goes with --on-existing resume, got --on-existing {self.on_existing}")
        if self.max_candidates < self.num_frames:
            raise ValueError(
                f"--max-candidates ({self.max_candidates}) must be at least --num-frames ({self.num_frames})"
            )
