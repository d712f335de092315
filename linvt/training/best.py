"""The best model of a run so far, by a validation metric.

    OUT/best -> best-00000500        what VideoLLM.save_pretrained wrote at that step

The link changes in one step, so `OUT/best` is always one whole model.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

BEST_LINK = "best"
BEST_GLOB = "best-*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """Which model is the best so far, and by what."""

    step: int
    value: float


def is_better(value: float, best: Best | None, metric: str) -> bool:
    """Whether a model with this value of `metric` beats the best so far: a lower loss, a higher accuracy."""
    if best is None:
        return True
    return value < best.value if metric.endswith("loss") else value > best.value


def save_best(run_dir: Path, step: int, write: Callable[[Path], None]) -> None:
    """Make what `write(folder)` writes the run's best model, and remove the one before."""
    final = run_dir / f"best-{step:08d}"
    unfinished = run_dir / f"best-unfinished-{uuid4().hex}"
    unfinished.mkdir(parents=True)
    write(unfinished)
    if final.exists():  # Of a run that was killed between here and the end of the step.
        shutil.rmtree(final)
    unfinished.rename(final)
    link = run_dir / f"{BEST_LINK}.{uuid4().hex}.tmp"
    link.symlink_to(final.name)
    os.replace(link, run_dir / BEST_LINK)
    for other in run_dir.glob(BEST_GLOB):
        if other != final:
            shutil.rmtree(other)
