"""What a run reports: JSON lines (and what trackers make of them), rates, memory.

OUT/metrics.jsonl has one object a line: {"step": …, "loss": …, …} of training, {"step": …, "eval_loss": …} of
validation. Loss values are those of that very step, so a resumed run writes the lines an uninterrupted one would have.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from linvt.training.trackers import Metrics, Tracker

METRICS_FILE = "metrics.jsonl"
_TAIL_BYTES = 8192


class MetricsLog:
    """Appends to OUT/metrics.jsonl and tells trackers. Rank 0's business."""

    def __init__(self, run_dir: Path, *, after_step: int, trackers: Sequence[Tracker] = ()) -> None:
        """Lines of steps beyond `after_step`, which a run that is resumed there will take again, are dropped."""
        self.path = run_dir / METRICS_FILE
        kept = [line for line in read_metrics(self.path) if line["step"] <= after_step]
        unfinished = self.path.with_name(f"{METRICS_FILE}.{uuid4().hex}.tmp")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        unfinished.replace(self.path)
        self._file = self.path.open("a")
        self._trackers = trackers

    def write(self, metrics: Metrics) -> None:
        """`metrics["step"]` says when."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(metrics)

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; [] where there is none. A last line that was cut off by a kill is left out."""
    if not path.is_file():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_training_line(path: Path) -> dict[str, Any] | None:
    """The newest line with a training loss, looked for in the file's last few kilobytes."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        complete = file.read().split(b"\n")[:-1]
    for line in reversed(complete):
        # The first of them may have lost its beginning.
        if line.startswith(b"{") and b'"loss"' in line:
            return json.loads(line)
    return None


class Meter:
    """Counts work and waiting between two reports. `pause()` and `resume()` keep validation and saving out of it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._started_at = time.perf_counter()
        self._tokens = self._samples = self._flops = 0.0
        self._waited_s = self._paused_s = 0.0

    def count(self, *, tokens: float, samples: int, flops: float, waited_s: float) -> None:
        self._tokens += tokens
        self._samples += samples
        self._flops += flops
        self._waited_s += waited_s

    def pause(self) -> None:
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        self._paused_s += time.perf_counter() - self._paused_at

    def rates(self, *, world_size: int, peak_flops_per_s: float | None) -> Metrics:
        """Per second since the last call, over all workers, and start over."""
        seconds = max(time.perf_counter() - self._started_at - self._paused_s, 1e-9)
        metrics = {
            "tokens_per_s": self._tokens / seconds,
            "samples_per_s": self._samples / seconds,
            "data_wait_share": self._waited_s / seconds,
            "model_flops_per_s": self._flops / seconds,
            "peak_memory_bytes": float(peak_memory_bytes()),
        }
        if peak_flops_per_s is not None:
            metrics["mfu"] = metrics["model_flops_per_s"] / (peak_flops_per_s * world_size)
        self._reset()
        return metrics


def peak_memory_bytes() -> int:
    """The most memory of this worker so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes if sys.platform == "darwin" else kilobytes_or_bytes * 1024
