"""Prometheus metrics of an extraction's workers, through Ray's own exporter (`ray_linvt_extract_…`)."""

from ray.util.metrics import Counter

from linvt.extraction.rows import VideoRow


class StageMetrics:
    """What one worker counts, under the stage's name."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        tags = ("stage", "status")
        self._inputs = Counter("linvt_extract_inputs", "Inputs that a stage is done with.", tag_keys=tags)
        self._seconds = Counter("linvt_extract_busy_seconds", "Seconds that workers were at work.", tag_keys=("stage",))
        self._frames = Counter("linvt_extract_frames", "Frames decoded, or encoded.", tag_keys=("stage",))

    def count(self, row: VideoRow, *, seconds: float, frames: int) -> None:
        self._inputs.inc(1, {"stage": self._stage, "status": row.status})
        for counter, value in ((self._seconds, seconds), (self._frames, frames)):
            if value > 0:  # Ray's counters refuse 0.
                counter.inc(value, {"stage": self._stage})
