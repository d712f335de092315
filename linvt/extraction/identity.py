"""What makes two caches the same: the feature id, and the settings that fix the last bits of a shard."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from linvt.backbones.base import PUBLISHED_VISION, VisionOptions
from linvt.shards.layout import EXTRACTION, LAYOUT_VERSION, CacheDtype, Sampling
from linvt.shards.storage import Storage
from linvt.shots.detectors import DetectorDtype


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """What the tokens of a video depend on. Caches with equal feature ids may be used for one another."""

    vision_fingerprint: str
    """Of the vision weights, their configuration and the image preprocessing."""
    max_side: int
    max_candidates: int
    cache_dtype: CacheDtype
    num_frames: int
    detector: str
    """Fingerprint of the shot detector's weights and code."""
    shot_threshold: float
    sampling: Sampling = "shots"
    fps: float | None = None
    full_grid: bool = False
    frame_side: int | None = None
    reset_intermediate: int | None = None
    """These three as in VisionOptions."""
    layout_version: int = LAYOUT_VERSION

    @property
    def vision_options(self) -> VisionOptions:
        return VisionOptions(**{field.name: getattr(self, field.name) for field in fields(VisionOptions)})

    @property
    def feature_id(self) -> str:
        """32 hex characters."""
        content = asdict(self)
        if self.sampling == "shots":
            # Caches from before there was a choice keep their id.
            del content["sampling"], content["fps"]
        if self.vision_options == PUBLISHED_VISION:
            for field in fields(VisionOptions):
                del content[field.name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """What OUT/extraction.json remembers: everything besides the inputs that decides the bytes of OUT's shards."""

    feature: FeatureSpec
    samples_per_shard: int
    encode_batch_size: int
    encode_dtype: str
    threads_per_worker: int
    detector_dtype: DetectorDtype = "float32"
    """The default is what there was before there was a choice."""
    compile_encoder: bool = False
    outdated_feature_ids: tuple[str, ...] = ()
    """Of other shot thresholds, from which shards are still to be brought over; none when an extraction is finished."""

    def to_json(self) -> bytes:
        fields = {"feature_id": self.feature.feature_id, **asdict(self)}
        if not self.outdated_feature_ids:
            del fields["outdated_feature_ids"]
        return (json.dumps(fields, sort_keys=True, indent=1) + "\n").encode()

    def flat(self) -> dict[str, Any]:
        """What was asked for, by names."""
        fields = asdict(self)
        del fields["outdated_feature_ids"]
        return fields.pop("feature") | fields


def read_extraction(storage: Storage) -> Extraction:
    """Raises FileNotFoundError where there is none."""
    fields = json.loads(storage.read(EXTRACTION))
    fields.pop("feature_id")
    outdated = tuple(fields.pop("outdated_feature_ids", ()))
    return Extraction(**fields | {"feature": FeatureSpec(**fields["feature"]), "outdated_feature_ids": outdated})


def require_same(existing: Extraction, asked: Extraction, uri: str, *, rethreshold: bool = False) -> None:
    """Raises ValueError naming the fields in which a cache differs from what is asked of it.

    With `rethreshold`, its shot threshold may be another.
    """
    before, now = existing.flat(), asked.flat()
    different = [name for name in now if before[name] != now[name]]
    if not different or (rethreshold and different == ["shot_threshold"]):
        return
    told = "; ".join(f"{name} (there: {before[name]!r}, asked: {now[name]!r})" for name in different)
    way_on = "bring it over with --rethreshold" if different == ["shot_threshold"] else "choose another --out"
    raise ValueError(
        f"{uri} holds an extraction with other settings: {told}. Ask for the same, {way_on}, or replace it with "
        "--on-existing overwrite"
    )


def rethresholded(existing: Extraction, asked: Extraction) -> Extraction:
    """`asked`, with the feature ids that shards at OUT may still have."""
    outdated = dict.fromkeys((*existing.outdated_feature_ids, existing.feature.feature_id))
    outdated.pop(asked.feature.feature_id, None)
    return replace(asked, outdated_feature_ids=tuple(outdated))
