"""How a trained model wants its frames made: as those were that it was trained on."""

import logging
from dataclasses import asdict
from pathlib import Path

from linvt.backbones import max_frame_side, vision_fingerprint
from linvt.extraction.identity import FeatureSpec
from linvt.shards.layout import Sampling
from linvt.shots import detector_fingerprint, published_threshold
from linvt.video_llm import image_llm_of, read_model_config, trained_vision_options

logger = logging.getLogger(__name__)


def trained_feature_spec(
    model: Path,
    *,
    detector: str,
    detector_weights: Path | None = None,
    num_frames: int | None = None,
    sampling: Sampling = "shots",
) -> tuple[FeatureSpec, int]:
    """How frames become tokens, and the encoder's batch size, for a directory that `VideoLLM.save_pretrained` wrote.

    `num_frames`: by default as many as the model was trained on. Raises ValueError where the image-LLM's vision weights
    are no longer those of the training.
    """
    config = read_model_config(model)
    trained = config["extraction"].get("feature", {})
    options = trained_vision_options(config)
    image_llm = image_llm_of(model, config)
    fingerprint = vision_fingerprint(image_llm, options)
    detector_now = detector_fingerprint(detector, detector_weights)
    if trained and trained["vision_fingerprint"] != fingerprint:
        raise ValueError(f"{model} was trained on frame tokens of other vision weights than {image_llm} has now")
    if trained and trained["detector"] != detector_now:
        logger.warning("--detector %s is not the one of the model's training", detector)
    # A threshold is one kind of detector's, whose name a fingerprint begins with.
    same_kind = trained.get("detector", "").split("-")[0] == detector
    frames: int = num_frames or trained.get("num_frames", 64)
    spec = FeatureSpec(
        vision_fingerprint=fingerprint,
        max_side=trained.get("max_side") or max_frame_side(image_llm),
        max_candidates=max(trained.get("max_candidates", 256), frames),
        cache_dtype=trained.get("cache_dtype", "bf16"),
        num_frames=frames,
        detector=detector_now,
        shot_threshold=trained["shot_threshold"] if same_kind else published_threshold(detector),
        sampling=sampling,
        **asdict(options),
    )
    return spec, config["extraction"].get("encode_batch_size", 16)
