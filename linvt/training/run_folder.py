"""The folder of a run, before and after the work: what an earlier run left there, and the outcome. Imports no torch."""

import json
import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

from linvt.training.best import BEST_GLOB, BEST_LINK
from linvt.training.config import TrainConfig, to_json

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
LEFT_OUT_FILE = "left_out.jsonl"
MIXTURE_FILE = "mixture.json"
RAY_FOLDER = "ray"
STOP_FILE = "stop"
"""There while a run on Ray is asked to stop."""
_FILES = (SUMMARY_FILE, STOP_FILE, LEFT_OUT_FILE, MIXTURE_FILE, "metrics.jsonl", "loss.png", "report.html")
_FOLDERS = ("model", "checkpoints", "tensorboard", RAY_FOLDER)


def open_run_folder(config: TrainConfig) -> dict[str, Any] | None:
    """Make OUT ready for this run; the summary of the run, if OUT holds it finished.

    Raises ValueError where OUT holds a run and --on-existing is fail, or is resume with settings that decide the
    result and differ.
    """
    if "://" in config.out:
        raise ValueError(f"--out {config.out}: a run's folder is a path that every worker reaches, not a URI")
    folder = Path(config.out)
    record = folder / CONFIG_FILE
    if record.is_file() and config.on_existing == "fail":
        raise ValueError(
            f"--out {folder} already holds a run; go on with it by --on-existing resume, replace it by --on-existing "
            "overwrite, or choose another folder"
        )
    if record.is_file() and config.on_existing == "resume":
        changes = config.changed_since(json.loads(record.read_text()))
        if changes:
            raise ValueError(
                f"--out {folder} holds a run with other settings: {'; '.join(changes)}. Ask for the same, choose "
                "another --out, or replace it with --on-existing overwrite"
            )
        summary = folder / SUMMARY_FILE
        return json.loads(summary.read_text()) if summary.is_file() else None
    _remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, to_json(config))
    return None


def _remove_run(folder: Path) -> None:
    """Removes what runs write at OUT and nothing else; config.json last, so a kill leaves no orphans."""
    (folder / BEST_LINK).unlink(missing_ok=True)
    for path in (*(folder / name for name in _FOLDERS), *folder.glob(BEST_GLOB)):
        if path.is_dir():
            shutil.rmtree(path)
    for name in (*_FILES, CONFIG_FILE):
        (folder / name).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
