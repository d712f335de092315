"""A run of lmms-eval against an endpoint, and its results read back: strictly, since it exits 0 whatever happens.

What it does silently, and what is an error here: no results at all, fewer rows than asked for, requests that failed,
whose error messages it takes for answers, and answers that it gives 0 because its judge failed.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linvt.evaluation.lmms import LMMS_EVAL

# Without them, a long video's first question is given up after ten seconds.
_TIMEOUT_S, _RETRIES = 1800, 5
_FAILED = ("[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED")
# What its tasks write to the log when they give an answer 0 because the judge could not be asked.
_JUDGE_FAILED = ("failed to get a score", "attempts failed", "Failed to Get a Proper Review", "Reach to max trials")


@dataclass(frozen=True, kw_only=True, slots=True)
class LmmsJob:
    """What lmms-eval is asked to do."""

    env: Path
    """The environment that `setup` made."""
    endpoint: str
    model: str
    tasks: tuple[str, ...]
    out: Path
    num_frames: int
    concurrency: int
    limit: int | None = None
    include_path: Path | None = None
    """The folder with a task that `export` wrote."""
    environment: dict[str, str]
    """Variables for it: keys, the judge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LmmsResults:
    """What lmms-eval wrote, checked."""

    results: dict[str, dict[str, Any]]
    """Of each task without subtasks: its numbers by name."""
    rows: dict[str, list[dict[str, Any]]]
    """Of each task, its logged answers."""
    questions: int
    """How many questions the tasks hold, whatever the limit."""
    empty: int
    """How many answers are empty."""
    version: str


def command_of(job: LmmsJob) -> list[str]:
    arguments = {
        "model": job.model,
        "base_url": job.endpoint,
        "pass_video_url": True,
        "max_frames_num": job.num_frames,
        "timeout": _TIMEOUT_S,
        "max_retries": _RETRIES,
        "num_concurrent": job.concurrency,
    }
    command = [str(job.env / "bin/lmms-eval"), "eval", "--model", "openai"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--tasks", ",".join(job.tasks), "--output_path", str(job.out), "--log_samples"]
    if job.include_path is not None:
        command += ["--include_path", str(job.include_path)]
    if job.limit is not None:
        command += ["--limit", str(job.limit)]
    return command


def run_lmms_eval(job: LmmsJob) -> LmmsResults:
    """Runs lmms-eval, its output in OUT/log.txt. Raises RuntimeError for any of its failures."""
    job.out.mkdir(parents=True, exist_ok=True)
    log = job.out / "log.txt"
    # Its tasks read HF_HOME without looking whether it is there.
    home = os.environ.get("HF_HOME", str(Path.home() / ".cache/huggingface"))
    environment = os.environ | {"HF_HOME": home} | job.environment
    if job.include_path is not None:  # our own tasks lead back to this library
        environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    with log.open("w") as file:
        done = subprocess.run(command_of(job), env=environment, stdout=file, stderr=subprocess.STDOUT)
    return read_lmms_eval(job.out, limit=job.limit, exit_code=done.returncode)


def read_lmms_eval(out: Path, *, limit: int | None, exit_code: int = 0) -> LmmsResults:
    """The results in the folder of one run. Raises RuntimeError for those that cannot be trusted."""
    found = sorted(out.glob("*/*_results.json"))
    log = out / "log.txt"
    if exit_code or len(found) != 1:
        tail = "\n".join(_lines(log)[-25:])
        raise RuntimeError(
            f"lmms-eval exited with {exit_code} and wrote {len(found)} results, expected 0 and one; {log} ends "
            f"with:\n{tail}"
        )
    content = json.loads(found[0].read_text(encoding="utf-8"))
    rows: dict[str, list[dict[str, Any]]] = {}
    for task, counts in content["n-samples"].items():
        path = Path(str(found[0]).replace("_results.json", f"_samples_{task}.jsonl"))
        rows[task] = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
            if path.is_file()
            else []
        )
        wanted = counts["original"] if limit is None else min(limit, counts["original"])
        if len({row["doc_id"] for row in rows[task]}) != wanted:
            raise RuntimeError(f"lmms-eval's task {task} has {len(rows[task])} rows of {wanted}; see {log}")
    said = [text for of_task in rows.values() for row in of_task for text in _texts(row)]
    failed = [text for text in said if text.startswith(_FAILED)]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(said)} answers in lmms-eval's results are failed requests, which it scores like "
            f"answers; the first: {failed[0][:300]}"
        )
    lost = [line for line in _lines(log) if any(mark in line for mark in _JUDGE_FAILED)]
    if lost:
        raise RuntimeError(f"lmms-eval gave {len(lost)} answers 0 because its judge failed, the first: {lost[0][:300]}")
    empty = sum(not text.strip() for text in said)
    if said and empty == len(said):
        raise RuntimeError(f"every answer in lmms-eval's results is empty; see {log}")
    return LmmsResults(
        results={task: content["results"][task] for task in rows},
        rows=rows,
        questions=sum(counts["original"] for counts in content["n-samples"].values()),
        empty=empty,
        version=LMMS_EVAL,
    )


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").split("\n") if log.is_file() else []


def _texts(row: dict[str, Any]) -> list[str]:
    """What the model said in a row: raw where it is logged, since a filter may take the marks of a failure away."""
    said = row.get("resps", row["filtered_resps"])
    while isinstance(said, list) and said and isinstance(said[0], list):
        said = [text for part in said for text in part]
    return [str(text) for text in (said if isinstance(said, list) else [said])]
