"""From a question about a video to the pictures of its evidence."""

import hashlib
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from linvt.answering import Slot, embed_prompt, fill_slots, frame_token_weights, generate
from linvt.evaluation.results import write_atomically
from linvt.extraction.identity import read_extraction
from linvt.serving.feature_spec import trained_feature_spec
from linvt.shards import CachedVideo
from linvt.shards.storage import open_storage
from linvt.shots import fast_detector_dtype, load_detector
from linvt.video_llm import VideoLLM
from linvt.visualization.config import EMBEDDED_MODEL, VisualizeConfig
from linvt.visualization.figures import frames_figure, save_png, time_figure, tokens_figure
from linvt.visualization.inputs import cached_sample, encode_file, pictures_of
from linvt.visualization.page import page
from linvt.visualization.view import EvidenceView

logger = logging.getLogger(__name__)

RESULT = "evidence.json"
"""Written last: a directory without it is unfinished."""
NUM_TOP_MOMENTS = 3


def visualize(config: VisualizeConfig) -> dict[str, Any]:
    """Asks the model, draws where its answer came from, writes all to `config.out`, and returns the main numbers.

    Raises ValueError for a model, video or sample that cannot be used, and for results in `config.out` under "fail".
    """
    started = time.monotonic()
    identity = _identity(config)
    done = _existing(config, identity)
    if done is not None:
        return done

    on_gpu = torch.cuda.is_available()
    auto = torch.bfloat16 if on_gpu else torch.float32
    llm = VideoLLM.from_pretrained(
        config.model,
        parts=("llm",) if config.cache else ("vision", "llm"),
        dtype=auto if config.dtype == "auto" else getattr(torch, config.dtype),
        device="cuda" if on_gpu else "cpu",
    )
    logger.info("reading %s", config.sample or config.video)
    video, max_candidates = _video(config, llm)
    view = explain(llm, video, config)
    view = _with_pictures(view, video, config, max_candidates)

    logger.info("drawing")
    config.out.mkdir(parents=True, exist_ok=True)
    files = ["frames.png", "time.png", "evidence.html"]
    save_png(frames_figure(view, max_pictures=config.max_pictures), config.out / "frames.png")
    save_png(time_figure(view), config.out / "time.png")
    if view.token_weights is not None and view.answer_tokens:
        save_png(tokens_figure(view), config.out / "answer_tokens.png")
        files.append("answer_tokens.png")
    write_atomically(config.out / "evidence.html", page(view))
    result = _result(view, files=files, out=config.out, seconds=time.monotonic() - started)
    numbers = {"made_with": identity, **result, **_numbers(view)}
    write_atomically(config.out / RESULT, json.dumps(numbers, ensure_ascii=False, indent=1) + "\n")
    return result


def explain(llm: VideoLLM, video: CachedVideo, config: VisualizeConfig) -> EvidenceView:
    """The answer (the model's, or the one that was given) and its evidence, still without pictures."""
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": config.question}]}]
    slots = fill_slots(llm, messages, [video], return_maps=True)
    ids = _answer_ids(llm, messages, slots, config)
    (weights_RTN,) = frame_token_weights(llm, messages, slots, [video], ids, per_answer_token=config.answer_tokens)
    map_QS = slots[0].map
    assert weights_RTN is not None
    assert map_QS is not None
    weights = weights_RTN.cpu().double().numpy()
    return EvidenceView(
        video=video.video_id,
        model="embedded, knows rendered scenes alone"
        if config.model == EMBEDDED_MODEL
        else config.model.resolve().name,
        question=config.question,
        answer=llm.backbone.decode(ids),
        timestamps_s=video.timestamps_s,
        duration_s=video.duration_s,
        shots_s=video.shots,
        shot_index=video.shot_index,
        weights=weights[0],
        held=(map_QS.amax(0) > 0).reshape(weights.shape[1:]).cpu().numpy(),
        answer_tokens=tuple(llm.backbone.decode([id_]) for id_ in ids) if config.answer_tokens else (),
        token_weights=weights[1:] if config.answer_tokens else None,
        grid=video.grid,
        pictures=None,
    )


def _answer_ids(llm: VideoLLM, messages: list[dict[str, Any]], slots: list[Slot], config: VisualizeConfig) -> list[int]:
    if config.answer is not None:
        stops = set(llm.backbone.stop_ids)
        return [id_ for id_ in llm.backbone.answer_ids(messages, config.answer) if id_ not in stops]
    (ids,) = generate(llm, [embed_prompt(llm, messages, slots)], max_new_tokens=config.max_new_tokens)
    return ids


def _video(config: VisualizeConfig, llm: VideoLLM) -> tuple[CachedVideo, int]:
    """The frame tokens, and among how many candidates their frames were chosen."""
    if config.cache is not None:
        assert config.sample is not None
        video = cached_sample(config.cache, config.sample)
        max_candidates = read_extraction(open_storage(config.cache)).feature.max_candidates
    else:
        assert config.video is not None
        spec, batch_size = trained_feature_spec(
            config.model,
            detector=config.detector,
            detector_weights=config.detector_weights,
            num_frames=config.num_frames,
            sampling=config.sampling,
        )
        detector = load_detector(
            config.detector, weights=config.detector_weights, dtype=fast_detector_dtype(config.detector)
        )
        video = encode_file(_uri(config.video), llm.backbone, spec, detector, batch_size=batch_size)
        max_candidates = spec.max_candidates
    if video.kind == "image":
        raise ValueError(f"{video.video_id} is an image: it goes past LinVT, and all of it is the evidence")
    if video.tokens.shape[-1] != llm.backbone.hidden_size:
        raise ValueError(
            f"{config.cache} holds tokens of {video.tokens.shape[-1]} channels, {config.model} expects "
            f"{llm.backbone.hidden_size}: they belong to different image-LLMs"
        )
    return video, max_candidates


def _with_pictures(
    view: EvidenceView, video: CachedVideo, config: VisualizeConfig, max_candidates: int
) -> EvidenceView:
    if config.video is not None:
        return replace(view, pictures=pictures_of(video, _uri(config.video), max_candidates=max_candidates))
    try:
        return replace(view, pictures=pictures_of(video, video.uri, max_candidates=max_candidates))
    except ValueError as error:
        logger.warning("drawing without pictures: %s; --video says where the file is now", error)
        return view


def _uri(video: str) -> str:
    return str(Path(video).resolve()) if Path(video).exists() else video


def _identity(config: VisualizeConfig) -> dict[str, Any]:
    """What the pictures depend on, but for the video's content."""
    asked = {name: value for name, value in asdict(config).items() if name not in ("out", "on_existing")}
    digest = hashlib.sha256()
    for path in sorted(config.model.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return json.loads(json.dumps(asked, default=str)) | {"model_sha256": digest.hexdigest()}


def _existing(config: VisualizeConfig, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The result that `config.out` holds already and that is to be kept."""
    file = config.out / RESULT
    if not file.exists():
        return None
    if config.on_existing == "fail":
        raise ValueError(
            f"{config.out} holds results already; pass --on-existing resume or overwrite, or another --out"
        )
    held = json.loads(file.read_text())
    if config.on_existing == "resume":
        different = [name for name, value in identity.items() if held["made_with"].get(name) != value]
        if different:
            raise ValueError(
                f"{config.out} holds results that differ in {', '.join(different)}; pass --on-existing overwrite, or "
                "another --out"
            )
        return {name: held[name] for name in _RESULT_FIELDS}
    file.unlink()
    return None


_RESULT_FIELDS = ("answer", "top_moments", "shot_weights", "frames", "shots", "pictures", "files", "out", "seconds")


def _result(view: EvidenceView, *, files: list[str], out: Path, seconds: float) -> dict[str, Any]:
    weights = view.frame_weights
    heaviest = sorted(range(len(weights)), key=lambda i: -weights[i])[:NUM_TOP_MOMENTS]
    return {
        "answer": view.answer,
        "top_moments": [
            {"timestamp_s": float(view.timestamps_s[i]), "weight": round(float(weights[i]), 4)} for i in heaviest
        ],
        "shot_weights": [round(float(weight), 4) for weight in view.shot_weights],
        "frames": len(weights),
        "shots": len(view.shots_s),
        "pictures": view.pictures is not None,
        "files": sorted([*files, RESULT]),
        "out": str(out),
        "seconds": round(seconds, 3),
    }


def _numbers(view: EvidenceView) -> dict[str, Any]:
    """All that the pictures show. `weights` [T, N], `token_weights` [R, T, N]: shares of one."""
    tokens = None
    if view.token_weights is not None:
        pairs = zip(view.answer_tokens, view.token_weights, strict=True)
        tokens = [{"text": text, "weights": weights.tolist()} for text, weights in pairs]
    return {
        "timestamps_s": view.timestamps_s.tolist(),
        "duration_s": view.duration_s,
        "shots_s": view.shots_s.tolist(),
        "shot_index": view.shot_index.tolist(),
        "grid": view.grid,
        "frame_weights": view.frame_weights.tolist(),
        "weights": view.weights.tolist(),
        "answer_tokens": tokens,
    }
