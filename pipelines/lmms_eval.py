"""A benchmark by lmms-eval against an endpoint, its results among those of our own harness."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from linvt.evaluation.benchmark_report import (
    SUMMARY,
    judge_record,
    report_files,
    summarise_benchmark,
    summary_markdown,
    write_tables,
)
from linvt.evaluation.benchmarks import BENCHMARKS
from linvt.evaluation.config import EvaluateConfig
from linvt.evaluation.entry import Benchmark, LoadOptions
from linvt.evaluation.lmms.environment import check_environment
from linvt.evaluation.lmms.running import LmmsJob, LmmsResults, read_lmms_eval, run_lmms_eval
from linvt.evaluation.lmms.task_functions import row_from_json
from linvt.evaluation.lmms.tasks import METRIC, export_task
from linvt.evaluation.results import open_run, write_atomically
from linvt.evaluation.work import identity_of_model

_DEFAULT_FRAMES = 64


def run_by_lmms_eval(config: EvaluateConfig) -> dict[str, Any]:
    """Runs the benchmark's tasks, or reads what a finished run left, and writes its summary and OUT/tables.md.

    Raises ValueError for bad input, RuntimeError for results of lmms-eval that cannot be trusted.
    """
    started = time.monotonic()
    assert config.endpoint is not None
    benchmark = BENCHMARKS[config.benchmark]
    out = config.out / benchmark.name
    logged = out / "lmms_eval"
    identity = {
        "benchmark": benchmark.name,
        "harness": "lmms-eval",
        "max_questions": config.max_questions,
        "judge_model": config.judge_model,
        **identity_of_model(config),
    }
    check_environment(config.lmms_env)
    open_run(out, identity, on_existing=config.on_existing, holds=report_files(out))

    if config.on_existing == "resume" and list(logged.glob("*/*_results.json")):
        found = read_lmms_eval(logged, limit=config.max_questions)
    else:
        # lmms-eval adds files to its folder, and what an earlier run left would be taken for this one's.
        shutil.rmtree(logged, ignore_errors=True)
        found = run_lmms_eval(_job(config, benchmark, logged))
    summary = _summary(config, benchmark, found, identity)
    write_atomically(out / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "summary.md", summary_markdown(summary))
    return {
        "benchmark": benchmark.name,
        "harness": summary["harness"],
        "questions": summary["questions"],
        "empty": summary["empty"],
        "unit": summary["unit"],
        "metrics": {name: number["value"] for name, number in summary["metrics"].items()},
        "out": str(out),
        "tables": str(write_tables(config.out)),
        "seconds": round(time.monotonic() - started, 3),
    }


def _job(config: EvaluateConfig, benchmark: Benchmark, out: Path) -> LmmsJob:
    tasks, include = benchmark.lmms_tasks, None
    if benchmark.lmms_ours:
        (data,) = config.data
        assert config.media_root is not None
        options = LoadOptions(media=config.media_root, num_frames=config.num_frames)
        include = out / "task"
        export_task(benchmark, benchmark.load(data, options), media_root=config.media_root, out=include)
    assert config.endpoint is not None
    return LmmsJob(
        env=config.lmms_env,
        endpoint=config.endpoint,
        model=config.served_model_name,
        tasks=tasks,
        out=out,
        num_frames=config.num_frames or _DEFAULT_FRAMES,
        concurrency=config.batch_size,
        limit=config.max_questions,
        include_path=include,
        environment=_environment(config, benchmark),
    )


def _environment(config: EvaluateConfig, benchmark: Benchmark) -> dict[str, str]:
    """Keys and the judge. Its own tasks know one key for both the model and the judge."""
    key = os.environ[config.api_key_env] if config.api_key_env else "none"
    variables = {"OPENAI_API_KEY": key}
    if config.judge_url is None:
        return variables
    assert config.judge_model is not None
    if benchmark.lmms_ours:
        named = {"LINVT_JUDGE_URL": config.judge_url, "LINVT_JUDGE_MODEL": config.judge_model}
        return variables | named | {"LINVT_JUDGE_KEY_ENV": config.judge_key_env or ""}
    if config.judge_key_env and config.api_key_env:
        raise ValueError(
            "lmms-eval sends one key to both the model and its judge: serve the model without --api-key-env, or leave "
            "the judge to --harness own"
        )
    if config.judge_key_env:
        variables["OPENAI_API_KEY"] = os.environ[config.judge_key_env]
    url = config.judge_url.rstrip("/") + "/chat/completions"
    return variables | {"OPENAI_API_URL": url, "MODEL_VERSION": config.judge_model, "API_TYPE": "openai"}


def _summary(
    config: EvaluateConfig, benchmark: Benchmark, found: LmmsResults, identity: dict[str, Any]
) -> dict[str, Any]:
    model = f"{config.served_model_name} at {config.endpoint}"
    protocol = benchmark.judge if benchmark.lmms_ours else None
    judge = judge_record(config.judge_model, config.judge_url, protocol, models=())
    harness = f"lmms-eval {found.version}"
    if benchmark.lmms_ours:
        rows = [row_from_json(row[METRIC]) for of_task in found.rows.values() for row in of_task]
        summary = summarise_benchmark(
            benchmark, rows, asked_of=found.questions, judge=judge, made_with=identity, model=model
        )
        return summary | {"harness": harness, "empty": found.empty}
    numbers = _main_numbers(benchmark, found)
    rows_found = sum(map(len, found.rows.values()))
    notes = [
        f"By {harness}, tasks {', '.join(benchmark.lmms_tasks)}: its prompts and its scoring.",
        "Failed requests, missing rows and runs without results would have been errors.",
    ]
    if rows_found < found.questions:
        notes.append(f"Only the first {config.max_questions} questions of each task.")
    if judge is not None:
        notes.append(f"Its judge: {config.judge_model}.")
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "model": model,
        "harness": harness,
        "table": benchmark.table,
        "scored_by": harness,
        "judge": judge,
        "is_judged": judge is not None,
        "needs_judge": benchmark.lmms_judge is not None,
        "unit": benchmark.judged_unit if judge else benchmark.unit,
        "questions": rows_found,
        "questions_in_files": found.questions,
        "published_questions": benchmark.questions,
        "missing": 0,
        "empty": found.empty,
        "without_published_answer": 0,
        "confidence": 0.95,
        "metrics": numbers,
        "breakdowns": {"task": _numbers_of_tasks(benchmark, found)} if len(found.results) > 1 else {},
        "made_with": identity,
        "notes": notes,
    }


def _main_numbers(benchmark: Benchmark, found: LmmsResults) -> dict[str, Any]:
    """The main number: the mean over tasks where there are several, with an interval where lmms-eval gives errors."""
    of_tasks = list(_numbers_of_tasks(benchmark, found).values())
    if len(of_tasks) != len(found.results):
        raise RuntimeError(f"lmms-eval's results lack {benchmark.lmms_metrics}: {found.results}")
    name = next(iter(benchmark.columns.values()))
    return {name: _mean(of_tasks)}


def _numbers_of_tasks(benchmark: Benchmark, found: LmmsResults) -> dict[str, Any]:
    numbers = {}
    for task, results in found.results.items():
        by_name = {name.split(",")[0]: number for name, number in results.items()}
        values = [by_name.get(metric) for metric in benchmark.lmms_metrics]
        if not all(isinstance(value, int | float) for value in values):
            continue
        value, scale = sum(value for value in values if value is not None), benchmark.lmms_scale
        error = by_name.get(f"{benchmark.lmms_metrics[0]}_stderr") if len(values) == 1 else None
        half = NormalDist().inv_cdf(0.975) * error * scale if isinstance(error, int | float) else None
        numbers[task] = {
            "value": scale * value,
            "low": None if half is None else scale * value - half,
            "high": None if half is None else scale * value + half,
            "count": len(found.rows[task]),
            "interval": "none" if half is None else "normal",
        }
    return numbers


def _mean(numbers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len(numbers) == 1:
        return numbers[0]
    value = sum(number["value"] for number in numbers) / len(numbers)
    count = sum(number["count"] for number in numbers)
    if any(number["low"] is None for number in numbers):
        return {"value": value, "low": None, "high": None, "count": count, "interval": "none"}
    half = sum((number["high"] - number["value"]) ** 2 for number in numbers) ** 0.5 / len(numbers)
    return {"value": value, "low": value - half, "high": value + half, "count": count, "interval": "combined"}
