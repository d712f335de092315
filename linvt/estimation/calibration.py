"""How fast this machine is, measured through the code that a job runs."""

import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from linvt.backbones import load_backbone, max_frame_side
from linvt.estimation.config import EstimateConfig
from linvt.estimation.constants import Constants
from linvt.estimation.image_llms import ImageLLM
from linvt.extraction.decode_process import DecodeProcess
from linvt.shards.commit import PendingSample, commit_shard, write_shard
from linvt.shards.index import write_index
from linvt.shards.layout import sample_key
from linvt.shards.sample import SampleInfo, tokens_to_bytes
from linvt.shards.storage import open_storage
from linvt.shots import load_detector
from linvt.training.config import TrainConfig
from linvt.training.context import plain_context
from linvt.training.flops import FlopCounter
from linvt.training.loop import train
from linvt.training.metrics import METRICS_FILE, read_metrics
from linvt.training.model import build_model
from linvt.training.run_folder import open_run_folder

logger = logging.getLogger(__name__)

_ROUNDS = 3
_TRAINED_VISITS, _TRAINED_STEPS, _UNCOUNTED_STEPS = 4, 8, 2
_RENDERED_FRAMES = (40, 400)
_WORDS = ("red", "blue", "ball", "box", "car", "moves", "left", "right", "up", "down", "the", "a", "first", "then")


def calibrate(config: EstimateConfig) -> tuple[ImageLLM, Constants]:
    """The image-LLM's size and this machine's constants. On a GPU where there is one, else on one CPU thread.

    Raises ValueError for an image-LLM that cannot be loaded or videos that cannot be decoded.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else "one thread of this CPU"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            logger.info("decoding and finding shots")
            per_video, per_megapixel, detector_rate = _decoding(config, Path(folder))
            logger.info("encoding")
            encoded = _encoding(config, device)
            logger.info("training")
            rates = {stage: _training(config, encoded, Path(folder), device, stage=stage) for stage in (1, 2)}
            llm = _llm_size(config)
    finally:
        torch.set_num_threads(threads)
    image_llm = ImageLLM(name=config.backbone, published_as=config.backbone, **llm, **encoded["image_llm"])
    constants = Constants(
        decode_seconds_per_video=per_video,
        decode_seconds_per_megapixel=per_megapixel,
        detector_frames_per_s=detector_rate,
        encode_flops_per_s=encoded["flops_per_s"],
        stage1_flops_per_s=rates[1],
        stage2_flops_per_s=rates[2],
        sources={
            name: f"measured on {'one thread of this CPU' if 'decode' in name or 'detector' in name else where}"
            for name in Constants.__dataclass_fields__
            if name != "sources"
        },
    )
    return image_llm, constants


def _decoding(config: EstimateConfig, folder: Path) -> tuple[float, float, float]:
    """Seconds per video, seconds per megapixel, detector frames per second; each the best of some rounds."""
    files = [Path(file) for file in config.calibration_videos]
    if not files:
        files = [folder / f"{count}.mp4" for count in _RENDERED_FRAMES]
        for file, count in zip(files, _RENDERED_FRAMES):
            _render(file, config, count)
    max_side = max_frame_side(config.backbone)
    decoder = DecodeProcess(stall_timeout_s=600.0, memory_mb=8192)
    detector = load_detector(config.detector)
    decode_s, megapixels, detect_s, frames = [], [], [], []
    try:
        for file in files:
            # The first round starts the child.
            passes = [_pass(decoder, detector, file, max_side) for _ in range(1 + _ROUNDS)][1:]
            decode_s.append(min(one["decode_s"] for one in passes))
            detect_s.append(min(one["detect_s"] for one in passes))
            frames.append(passes[0]["frames"])
            megapixels.append(passes[0]["megapixels"])
    finally:
        decoder.close()
    if len(files) > 1:
        slope, overhead = np.polyfit(megapixels, decode_s, 1)
        slope, overhead = max(float(slope), 1e-9), max(float(overhead), 0.0)
    else:
        slope, overhead = decode_s[0] / megapixels[0], 0.0
    # The longest video says most: short ones fill one window of the detector.
    rate = frames[-1] / max(detect_s[-1], 1e-9)
    return overhead, slope, rate


def _pass(decoder: DecodeProcess, detector: Any, file: Path, max_side: int) -> dict[str, float]:
    """One file through the decoding process and the detector, as extraction does it."""
    chunks: list[np.ndarray] = []
    stream = decoder(str(file), max_side, 256)
    started = time.perf_counter()
    try:
        while True:
            chunks.append(next(stream))
    except StopIteration as end:
        media = end.value
    media.take(media.candidates[:: max(1, len(media.candidates) // 64)])
    decode_s = time.perf_counter() - started
    started = time.perf_counter()
    detector.predict_stream(iter(chunks))
    info = media.info
    return {
        "decode_s": decode_s,
        "detect_s": time.perf_counter() - started,
        "frames": info.num_frames,
        "megapixels": info.num_frames * info.width * info.height / 1e6,
    }


def _render(file: Path, config: EstimateConfig, num_frames: int) -> None:
    """Moving noise over a gradient: costs a decoder more than a drawing, and less than a film's grain."""
    generator = np.random.default_rng(0)
    height, width = config.height // 2 * 2, config.width // 2 * 2
    background = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    patch = generator.integers(0, 255, (height // 2, width // 2, 3))
    with av.open(file, "w") as container:
        stream = container.add_stream("libx264", rate=round(config.frame_rate), options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            picture = background.copy()
            x, y = number * 3 % (width // 2), number * 2 % (height // 2)
            picture[y : y + height // 2, x : x + width // 2] = patch[:, :]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())


def _encoding(config: EstimateConfig, device: str) -> dict[str, Any]:
    backbone = load_backbone(
        config.backbone,
        parts={"vision"},
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
        device=device,
    )
    side = max_frame_side(config.backbone)
    shape = (config.encode_batch_size, max(16, side * config.height // config.width), side, 3)
    frames = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    with FlopCounterMode(display=False) as counter:
        tokens_TNC = backbone.encode_frames(frames, batch_size=config.encode_batch_size).tokens
    flops = counter.get_total_flops()

    def encode() -> None:
        backbone.encode_frames(frames, batch_size=config.encode_batch_size).tokens.cpu()

    return {
        "flops_per_s": flops / _best(encode),
        "image_llm": {
            "tokens_per_frame": tokens_TNC.shape[1],
            "hidden_size": tokens_TNC.shape[2],
            "frame_flops": flops / config.encode_batch_size,
        },
    }


def _training(config: EstimateConfig, encoded: dict[str, Any], folder: Path, device: str, *, stage: int) -> float:
    """Model FLOP/s of a real run on a cache of random tokens."""
    cache = folder / "cache"
    if not cache.exists():
        _write_cache(cache, config, encoded["image_llm"])
    train_config = _train_config(config, folder, stage, on_gpu=device == "cuda")
    open_run_folder(train_config)
    with plain_context(train_config.out) as context:
        train(train_config, context)
    lines = read_metrics(Path(train_config.out) / METRICS_FILE)
    rates = [line["model_flops_per_s"] for line in lines if "loss" in line][_UNCOUNTED_STEPS:]
    return float(np.median(rates))


def _train_config(config: EstimateConfig, folder: Path, stage: int, *, on_gpu: bool) -> TrainConfig:
    return TrainConfig(
        stage=1 if stage == 1 else 2,
        cache=str(folder / "cache"),
        annotations=(str(folder / "cache/annotations.jsonl"),),
        backbone=config.backbone,
        out=str(folder / f"stage{stage}"),
        steps=_TRAINED_STEPS,
        visits_per_batch=_TRAINED_VISITS,
        turns_per_visit=config.turns_per_visit,
        lora_rank=config.lora_rank,
        warmup_steps=0,
        learning_rate=1e-6,
        log_every=1,
        save_every=10 * _TRAINED_STEPS,
        num_workers="0",
        precision="bf16" if on_gpu else "fp32",
        zero_stage=1 if on_gpu else 0,
    )


def _write_cache(folder: Path, config: EstimateConfig, shape: dict[str, Any]) -> None:
    storage = open_storage(str(folder))
    generator = torch.Generator().manual_seed(0)
    samples, rows = [], []
    for slot in range(2 * _TRAINED_VISITS):
        tokens = torch.randn(
            config.num_frames, shape["tokens_per_frame"], shape["hidden_size"], generator=generator
        ).bfloat16()
        name, sha256 = f"{slot}.mp4", f"{slot:064x}"
        info = SampleInfo(
            key=sample_key(sha256, name),
            video_id=name,
            uri=name,
            sha256=sha256,
            kind="video",
            grid=None,
            timestamps_s=tuple(float(i) for i in range(config.num_frames)),
            duration_s=float(config.num_frames),
            shots=((0.0, float(config.num_frames)),),
            shot_index=(0,) * config.num_frames,
            feature_id="0" * 32,
        )
        data = (info.to_json(), tokens_to_bytes(tokens, config.cache_dtype))
        samples.append(
            PendingSample(
                slot=slot,
                key=info.key,
                video_id=name,
                uri=name,
                sha256=sha256,
                kind="video",
                shape=(config.num_frames, shape["tokens_per_frame"], shape["hidden_size"]),
                grid=None,
                duration_s=info.duration_s,
                load=lambda data=data: data,
            )
        )
        text = " ".join(_WORDS[(slot + i) % len(_WORDS)] for i in range(config.answer_tokens))
        turns = [{"question": "what happens ?", "answer": text} for _ in range(config.turns_per_visit)]
        rows.append({"media": name, "kind": "video", "caption": text, "qa": turns})
    record = write_shard(
        storage,
        shard=0,
        generation=0,
        plan_hash="0" * 64,
        feature_id="0" * 32,
        devices=[],
        samples=samples,
        tombstones=(),
        num_slots=len(samples),
    )
    commit_shard(storage, record)
    write_index(storage, [record])
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _llm_size(config: EstimateConfig) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(_train_config(config, Path(folder), 1, on_gpu=False), torch.device("cpu"))
    counter = FlopCounter(model)
    return {"llm_parameters": counter.llm, "head_parameters": counter.head}


def _best(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(1 + _ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
