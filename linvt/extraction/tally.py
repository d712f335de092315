"""What a run of an extraction did, counted while it goes on: for its progress, its metrics and its last words."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from linvt.extraction.rows import STAGE_SECONDS

_DECODER_STAGES = ("fetch", "decode", "shots")
TALLIED_COLUMNS = (
    *("slot", "status", "video_id", "stage", "error_class", "duration_s", "num_frames"),
    *STAGE_SECONDS.values(),
)
"""What an encoder tells of each input that it is done with."""


@dataclass(kw_only=True, slots=True)
class Tally:
    num_decoders: int
    num_encoders: int
    inputs: int = 0
    quarantined: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (stage, error class)."""
    video_s: float = 0.0
    frames: int = 0
    busy_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGE_SECONDS, 0.0))
    """Seconds that workers spent in each stage, summed over them."""

    def add(self, columns: Mapping[str, list[Any]]) -> None:
        """Counts some inputs, given as `TALLIED_COLUMNS`."""
        self.inputs += len(columns["slot"])
        for status, stage, error_class in zip(columns["status"], columns["stage"], columns["error_class"]):
            if status == "quarantined":
                self.quarantined[stage, error_class] += 1
        self.video_s += sum(value or 0.0 for value in columns["duration_s"])
        self.frames += sum(value or 0 for value in columns["num_frames"])
        for stage, name in STAGE_SECONDS.items():
            self.busy_s[stage] += sum(value or 0.0 for value in columns[name])

    @property
    def num_quarantined(self) -> int:
        return self.quarantined.total()

    def facts(self, elapsed_s: float) -> dict[str, Any]:
        """For a progress line. Starved: the share of its time in which a kind of worker had nothing to do."""
        decoders_s, encoders_s = (max(elapsed_s, 1e-9) * n for n in (self.num_decoders, self.num_encoders))
        decoding_s = sum(self.busy_s[stage] for stage in _DECODER_STAGES)
        return {
            "quarantined": self.num_quarantined,
            "video_hours": round(self.video_s / 3600, 3),
            "frames_per_s": round(self.frames / max(elapsed_s, 1e-9), 1),
            "decoders_starved": round(max(0.0, 1 - decoding_s / decoders_s), 3),
            "encoders_starved": round(max(0.0, 1 - self.busy_s["encode"] / encoders_s), 3),
        }

    def summary(self, elapsed_s: float, *, cpus: float, gpus: float) -> dict[str, Any]:
        """For the end of a run."""
        per_day = self.video_s / 3600 * 86400 / max(elapsed_s, 1e-9)
        return {
            "inputs_this_run": self.inputs,
            **self.facts(elapsed_s),
            "video_hours_per_day": round(per_day, 1),
            "video_hours_per_day_and_" + ("gpu" if gpus else "core"): round(per_day / (gpus or cpus or 1), 1),
            "stage_seconds": {stage: round(self.busy_s[stage], 1) for stage in STAGE_SECONDS},
            "quarantined_by_reason": {f"{stage}: {name}": n for (stage, name), n in self.quarantined.most_common()},
        }
