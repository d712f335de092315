"""Checkpoints: a folder of safetensors and JSON, complete or absent.

    OUT/checkpoints/step-00000500/trainable.safetensors   fp32 weights of what trains
                                  optimizer.safetensors   AdamW's two moments of each
                                  average.safetensors     their running average, where the run keeps one
                                  state.json              the cursor, and what the run remembers of its losses

Written under a temporary name, flushed, renamed; the one before is removed only then. No pickle, nothing frozen, and
nothing that depends on the number of workers.
"""

import json
import os
import re
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

from safetensors.torch import load_file, save_file
from torch import Tensor

from linvt.training.best import Best
from linvt.training.guards import GuardState

CHECKPOINTS_FOLDER = "checkpoints"
_WEIGHTS, _OPTIMIZER, _AVERAGE = "trainable.safetensors", "optimizer.safetensors", "average.safetensors"
_STATE = "state.json"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Where a run stands."""

    step: int
    """Optimizer steps done."""
    samples_consumed: int
    """Samples of the endless stream that these steps used."""
    epoch: int
    """The epoch that the next sample belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """What state.json holds."""

    cursor: Cursor
    data_fingerprint: str
    """Of the visits: the cursor means nothing in other data."""
    guards: GuardState = field(default_factory=GuardState)
    best: Best | None = None
    """The best model that validation has found."""


def save_checkpoint(run_dir: Path, state: CheckpointState, tensors: dict[str, Tensor]) -> Path:
    """Write a checkpoint; when it is complete, remove the older ones. `tensors` as from Engine.gather_state."""
    folder = run_dir / CHECKPOINTS_FOLDER
    final = folder / f"step-{state.cursor.step:08d}"
    unfinished = folder / f"unfinished-{final.name}-{uuid4().hex}"
    unfinished.mkdir(parents=True)
    file_of = {"weights": _WEIGHTS, "average": _AVERAGE}
    files: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        files[file_of.get(name.split(".", 1)[0], _OPTIMIZER)][name] = tensor
    for file_name, content in files.items():
        save_file(content, unfinished / file_name)
    (unfinished / _STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
    for file in unfinished.iterdir():
        _flush(file)
    _flush(unfinished)
    unfinished.rename(final)
    _flush(folder)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other)
    return final


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    folder = run_dir / CHECKPOINTS_FOLDER
    complete = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return max(complete, key=lambda path: path.name, default=None)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def load_checkpoint(folder: Path) -> tuple[CheckpointState, dict[str, Tensor]]:
    """What `save_checkpoint` was given. Raises ValueError for a folder that does not hold it."""
    missing = [name for name in (_WEIGHTS, _OPTIMIZER, _STATE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: no {', '.join(missing)}; remove this folder to resume from scratch")
    fields = json.loads((folder / _STATE).read_text())
    guards, best = fields.get("guards", {}), fields.get("best")
    state = CheckpointState(
        cursor=Cursor(**fields["cursor"]),
        data_fingerprint=fields["data_fingerprint"],
        guards=GuardState(**guards | {"recent_losses": tuple(guards.get("recent_losses", ()))}),
        best=Best(**best) if best is not None else None,
    )
    tensors = load_file(folder / _WEIGHTS) | load_file(folder / _OPTIMIZER)
    if (folder / _AVERAGE).is_file():
        tensors |= load_file(folder / _AVERAGE)
    return state, tensors


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
