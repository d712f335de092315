"""What makes two caches the same: the feature id, and the settings that fix the last bits of a shard."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
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

    def to_json(self) -> bytes:
        fields = {"feature_id": self.feature.feature_id, **asdict(self)}
        return (json.dumps(fields, sort_keys=True, indent=1) + "\n").encode()

    def flat(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields.pop("feature") | fields


def read_extraction(storage: Storage) -> Extraction:
    """Raises FileNotFoundError where there is none."""
    fields = json.loads(storage.read(EXTRACTION))
    fields.pop("feature_id")
    return Extraction(**fields | {"feature": FeatureSpec(**fields["feature"])})


def require_same(existing: Extraction, asked: Extraction, uri: str) -> None:
    """Raises ValueError naming the fields in which a cache differs from what is asked of it."""
    before, now = existing.flat(), asked.flat()
    different = [f"{name} (there: {before[name]!r}, asked: {now[name]!r})" for name in now if before[name] != now[name]]
    if different:
        raise ValueError(
            f"{uri} holds an extraction with other settings: {'; '.join(different)}. Ask for the same, choose another "
            "--out, or replace it with --on-existing overwrite"
        )
