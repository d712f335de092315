"""From a corpus, an image-LLM and constants to hours and money. Nothing is measured here. Imports no torch.

What training costs is counted as `linvt.training.flops` counts it, so that a rate measured by that count fits.
"""

import math
from dataclasses import dataclass

from linvt.estimation.config import EstimateConfig
from linvt.estimation.constants import Constants
from linvt.estimation.corpus import Corpus
from linvt.estimation.image_llms import ImageLLM

# The members' tar headers and padding, and the JSON beside the tokens: 2.5 kB, and 30 bytes a frame.
_SAMPLE_OVERHEAD_BYTES, _FRAME_OVERHEAD_BYTES = 4096, 30
# Of a sample's row in index.parquet, videos.parquet and its commit record.
_ROW_BYTES = 1500
_GET_OF_A_SHARD = 2
"""Requests beside the samples' own: the commit record, and the size of the tar."""
_BYTES_OF_DTYPE = {"bf16": 2.0, "int8": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTokenizerSize:
    """LinVT's parameters at an image-LLM's hidden size."""

    refiner: int
    aggregator: int
    video_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a part of the job takes. Money is in the prices' currency."""

    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    wall_hours: float = 0.0
    storage_gb: float = 0.0
    """Written."""
    read_gb: float = 0.0
    """Read from the storage: egress, where that costs."""
    cost: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    extraction: Work
    """With the storage of the cache for --storage-months."""
    stage1: Work
    stage2: Work
    uncached_shots: Work
    """Of finding shots alone, where the run without a cache does so."""
    uncached_stage1: Work
    uncached_stage2: Work
    sample_megabytes: float
    objects: int
    """Of the finished cache."""
    break_even_epochs: float | None
    """Passes over the whole corpus from which on extracting first is cheaper; None: never."""

    @property
    def cached(self) -> Work:
        return self.extraction + self.stage1 + self.stage2

    @property
    def uncached(self) -> Work:
        return self.uncached_shots + self.uncached_stage1 + self.uncached_stage2

    @property
    def verdict(self) -> str:
        ratio = self.uncached.cost / self.cached.cost if self.cached.cost else math.inf
        if self.break_even_epochs is None:
            return "caching LOSES at any number of epochs: reading a sample costs more than making it again"
        if ratio < 1:
            return (
                f"caching LOSES here: it costs {1 / ratio:.2f} times as much, and would pay from "
                f"{self.break_even_epochs:.1f} passes on; train from it more often (other seeds, stages, sizes), or do "
                "without"
            )
        return f"caching wins: without it the same costs {ratio:.2f} times as much; it pays from " + (
            f"{self.break_even_epochs:.1f} passes on"
        )


def estimate(
    config: EstimateConfig, corpus: Corpus, image_llm: ImageLLM, size: VideoTokenizerSize, constants: Constants
) -> Estimate:
    """See `Estimate`. Without a cache, each visit decodes its video and encodes its frames again, on the machines that
    train; decoding overlaps with the rest as long as there are CPUs."""
    kept = min(config.num_frames, max(1.0, corpus.frames))
    batch = config.encode_batch_size
    encoded = math.ceil(kept / batch) * batch
    decode_s = constants.decode_seconds_per_video + corpus.frames * corpus.megapixels * (
        constants.decode_seconds_per_megapixel
    )
    detect_s = corpus.frames / constants.detector_frames_per_s if config.detector != "none" else 0.0
    encode_s = encoded * image_llm.frame_flops / constants.encode_flops_per_s
    token_bytes = kept * image_llm.tokens_per_frame * image_llm.hidden_size * _BYTES_OF_DTYPE[config.cache_dtype]
    if config.cache_dtype == "int8":
        token_bytes += 4 * kept * image_llm.tokens_per_frame
    sample_bytes = token_bytes + _SAMPLE_OVERHEAD_BYTES + _FRAME_OVERHEAD_BYTES * kept

    # Extraction. Decoders and encoders work at the same time.
    n = corpus.videos
    cpu_hours, gpu_hours = n * (decode_s + detect_s) / 3600, n * encode_s / 3600
    shards = math.ceil(n / config.samples_per_shard)
    storage_gb = n * (sample_bytes + _ROW_BYTES) / 1e9
    extraction = Work(
        cpu_hours=cpu_hours,
        gpu_hours=gpu_hours,
        wall_hours=max(cpu_hours / config.cpus, gpu_hours / config.gpus),
        storage_gb=storage_gb,
        read_gb=n * corpus.bytes / 1e9,
        cost=cpu_hours * config.cpu_hour_price
        + gpu_hours * config.gpu_hour_price
        + n * corpus.bytes / 1e9 * config.egress_gb_price
        + storage_gb * config.storage_months * config.storage_gb_month_price
        # A spooled file a sample, and three a shard.
        + (n + 3 * shards) * config.put_price_per_1000 / 1000
        + 2 * n * config.request_price_per_1000 / 1000,
    )

    uncached_shots = Work()
    if config.uncached_shots:
        uncached_shots = Work(
            cpu_hours=cpu_hours,
            wall_hours=cpu_hours / config.cpus,
            read_gb=n * corpus.bytes / 1e9,
            cost=cpu_hours * config.cpu_hour_price + n * corpus.bytes / 1e9 * config.egress_gb_price,
        )

    def stage(visits: float, flops: float, flops_per_s: float) -> tuple[Work, Work]:
        compute_s = flops / flops_per_s
        read_s = sample_bytes / (config.read_megabytes_per_s * 1e6)
        requests = 1 + _GET_OF_A_SHARD / config.samples_per_shard
        cached_hours = visits * max(compute_s, read_s) / 3600
        read_gb = visits * sample_bytes / 1e9
        cached = Work(
            gpu_hours=cached_hours,
            wall_hours=cached_hours / config.gpus,
            read_gb=read_gb,
            cost=cached_hours * config.gpu_hour_price
            + read_gb * config.egress_gb_price
            + visits * requests * config.request_price_per_1000 / 1000,
        )
        gpu_hours, cpu_hours = visits * (compute_s + encode_s) / 3600, visits * decode_s / 3600
        uncached = Work(
            cpu_hours=cpu_hours,
            gpu_hours=gpu_hours,
            wall_hours=max(cpu_hours / config.cpus, gpu_hours / config.gpus),
            read_gb=visits * corpus.bytes / 1e9,
            cost=cpu_hours * config.cpu_hour_price
            + gpu_hours * config.gpu_hour_price
            + visits * corpus.bytes / 1e9 * config.egress_gb_price
            + visits * config.request_price_per_1000 / 1000,
        )
        return cached, uncached

    flops = [visit_flops(config, image_llm, size, kept, stage=number) for number in (1, 2)]
    rates = (constants.stage1_flops_per_s, constants.stage2_flops_per_s)
    visits = [
        (n if config.stage1_videos is None else config.stage1_videos) * config.stage1_epochs,
        (n if config.stage2_videos is None else config.stage2_videos) * config.stage2_epochs,
    ]
    (stage1, uncached1), (stage2, uncached2) = (stage(*each) for each in zip(visits, flops, rates))

    # A pass over the whole corpus: whichever stage's, the difference is what reading costs against making again.
    cached_pass, uncached_pass = stage(n, flops[1], rates[1])
    saved = uncached_pass.cost - cached_pass.cost
    return Estimate(
        extraction=extraction,
        stage1=stage1,
        stage2=stage2,
        uncached_shots=uncached_shots,
        uncached_stage1=uncached1,
        uncached_stage2=uncached2,
        sample_megabytes=sample_bytes / 1e6,
        objects=3 * shards + 5,
        break_even_epochs=max(0.0, extraction.cost - uncached_shots.cost) / saved if saved > 0 else None,
    )


def visit_flops(
    config: EstimateConfig, image_llm: ImageLLM, size: VideoTokenizerSize, kept: float, *, stage: int
) -> float:
    """Of one visit, as `linvt.training.flops.FlopCounter` counts them."""
    turns = 1 if stage == 1 else config.turns_per_visit
    sequence = turns * (size.video_tokens + config.text_tokens)
    caption = config.answer_tokens if stage == 1 else 0
    answers = turns * config.answer_tokens
    frozen = image_llm.llm_parameters * (4 * sequence + 2 * caption) + 4 * image_llm.head_parameters * answers
    lora = image_llm.lora_parameters(config.lora_rank) * sequence if stage == 2 else 0.0
    refined = size.refiner * kept * image_llm.tokens_per_frame
    return frozen + 6 * (lora + refined + size.aggregator * turns * size.video_tokens)
