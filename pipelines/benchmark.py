"""A published benchmark: its questions answered, judged where it takes a judge, and counted by its own rules."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
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
from linvt.evaluation.entry import UNLABELLED, Benchmark, Item, LoadOptions
from linvt.evaluation.item_work import EndpointItemAnswerer, ItemAnswer, ModelItemAnswerer
from linvt.evaluation.judge import Judge, JudgeError, Judgement
from linvt.evaluation.results import RowLog, open_run, write_atomically
from linvt.evaluation.scored import item_from_json, scored
from linvt.evaluation.work import identity_of_model
from pipelines._map_by_ray import map_by_ray
from pipelines._progress import Progress

logger = logging.getLogger(__name__)


def run_benchmark(config: EvaluateConfig) -> dict[str, Any]:
    """Answers and judges what OUT/NAME does not hold yet, writes its summary and OUT/tables.md, returns the numbers.

    Raises ValueError for bad input, and RuntimeError where an endpoint or a judge fails: what was answered and judged
    until then stays, and the same command with --on-existing resume goes on.
    """
    started = time.monotonic()
    benchmark = BENCHMARKS[config.benchmark]
    out = config.out / benchmark.name

    # 1. What is asked, and what is answered already.
    (data,) = config.data
    options = LoadOptions(media=config.media_root, num_frames=config.num_frames)
    every = list(benchmark.load(data, options))
    if not every:
        raise ValueError(f"--data {data}: no questions of {benchmark.title}")
    items = every[: config.max_questions]
    identity = {
        "benchmark": benchmark.name,
        "questions_sha256": _sha256_of_items(every),
        "media_prefix": config.media_prefix,
        **identity_of_model(config),
    }
    paths = [out / "answers.jsonl", out / "submission.json", *out.glob("judgements-*")]
    open_run(out, identity, on_existing=config.on_existing, holds=[*paths, *report_files(out)])

    # 2. Answer. Every batch is on disk before the next is counted.
    log = RowLog(out / "answers.jsonl", ItemAnswer)
    # Media that were missing may be there now.
    done = {answer.item_id for answer in log.rows if answer.prediction is not None}
    # Questions about one medium follow each other: it is read, or fetched, once.
    left = sorted((item for item in items if item.item_id not in done), key=lambda item: [m.path for m in item.media])
    logger.info("%s: %d questions, %d are left", benchmark.title, len(items), len(left))
    with ExitStack() as session, Progress(len(left), unit="answer") as progress:
        for answers in _answers(config, left, session):
            log.append(answers)
            progress.advance(len(answers))
    log.close()
    said = {answer.item_id: answer.prediction for answer in log.rows}
    if all(said[item.item_id] is None for item in items if item.media) and any(item.media for item in items):
        raise RuntimeError(
            f"not one of the media that {benchmark.title} asks about could be read: look at --media-root (or --cache "
            f"and --media-prefix), which should hold {benchmark.media}, then go on with --on-existing resume"
        )

    # 3. Judge, by the benchmark's rule or by a judge.
    judge, judged = _judge(config, benchmark), {}
    if judge is not None:
        with closing(judge):
            judged = _judgements(config, out, judge, items, said)
    rows = [
        scored(benchmark, item, said[item.item_id], judged.get(item.item_id), is_judged=judge is not None)
        for item in items
    ]
    write_atomically(out / "results.jsonl", "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))

    # 4. Count.
    unlabelled = any(row.by == UNLABELLED for row in rows)
    if benchmark.submission is not None and unlabelled:
        submission = benchmark.submission([(item, said[item.item_id]) for item in items])
        write_atomically(out / "submission.json", json.dumps(submission, ensure_ascii=False) + "\n")
    summary = summarise_benchmark(
        benchmark,
        rows,
        asked_of=len(every),
        judge=judge_record(
            config.judge_model,
            config.judge_url,
            benchmark.judge,
            models=[judgement.model for judgement in judged.values()],
        ),
        made_with=identity,
        model=_model_name(config),
    )
    write_atomically(out / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "summary.md", summary_markdown(summary))
    tables = write_tables(config.out)
    return {
        "benchmark": benchmark.name,
        "questions": len(rows),
        "missing": summary["missing"],
        "empty": summary["empty"],
        "scored_by": summary["scored_by"],
        "unit": summary["unit"],
        "metrics": {name: number["value"] for name, number in summary["metrics"].items()},
        "out": str(out),
        "tables": str(tables),
        "seconds": round(time.monotonic() - started, 3),
    }


def _model_name(config: EvaluateConfig) -> str:
    return f"{config.served_model_name} at {config.endpoint}" if config.endpoint else str(config.model)


def _sha256_of_items(items: Sequence[Item]) -> str:
    """Of everything that is asked: other prompts are another run."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(asdict(item), sort_keys=True).encode())
    return digest.hexdigest()


def _answers(config: EvaluateConfig, items: Sequence[Item], session: ExitStack) -> Iterator[list[ItemAnswer]]:
    batches = [items[i : i + config.batch_size] for i in range(0, len(items), config.batch_size)]
    if not batches:
        return
    if config.endpoint is not None:
        yield from map(session.enter_context(closing(EndpointItemAnswerer(config))), batches)
    elif config.num_workers == 0:
        yield from map(ModelItemAnswerer(config, num_threads=config.threads_per_worker), batches)
    else:
        texts = [json.dumps([asdict(item) for item in batch]) for batch in batches]
        for answers in map_by_ray(config, RayItemAnswerer, texts, session):
            yield [ItemAnswer(**answer) for answer in json.loads(answers)]


class RayItemAnswerer:
    """For `map_by_ray`: items in, their answers out, both as JSON."""

    def __init__(self, config: EvaluateConfig, num_threads: int) -> None:
        self._answerer = ModelItemAnswerer(config, num_threads=num_threads)

    def __call__(self, items: str) -> str:
        answers = self._answerer([item_from_json(fields) for fields in json.loads(items)])
        return json.dumps([asdict(answer) for answer in answers])


def _judge(config: EvaluateConfig, benchmark: Benchmark) -> Judge | None:
    if config.judge_url is None:
        return None
    assert config.judge_model is not None
    assert benchmark.judge is not None
    return Judge(config.judge_url, config.judge_model, benchmark.judge, key_env=config.judge_key_env)


def _judgements(
    config: EvaluateConfig,
    out: Path,
    judge: Judge,
    items: Sequence[Item],
    said: dict[str, str | None],
) -> dict[str, Judgement]:
    """The judge's verdicts on all answers that say anything. Another judge's verdicts lie in a file of their own."""
    log = RowLog(out / f"judgements-{_short_hash(judge.identity)}.jsonl", Judgement)
    done = {judgement.item_id for judgement in log.rows}
    left = [item for item in items if item.answers and (said[item.item_id] or "").strip() and item.item_id not in done]
    failures: list[str] = []

    def verdict(item: Item) -> Judgement | str:
        prediction = said[item.item_id]
        assert prediction is not None
        try:
            # HallusionBench's second answer is the one in words, which its judge is shown.
            return judge.judge(item.item_id, question=item.question, answer=item.answers[-1], prediction=prediction)
        except JudgeError as error:
            return str(error)

    with ThreadPoolExecutor(config.judge_workers) as pool, Progress(len(left), unit="judgement") as progress:
        for start in range(0, len(left), config.judge_workers):
            verdicts = list(pool.map(verdict, left[start : start + config.judge_workers]))
            found = [one for one in verdicts if isinstance(one, Judgement)]
            log.append(found)
            failures += [one for one in verdicts if isinstance(one, str)]
            progress.advance(len(found))
            if not found:  # it is out of order: the others' turn would only take its time
                break
    log.close()
    if failures:
        raise RuntimeError(
            f"{failures[0]}. {len(log.rows)} of {len(done) + len(left)} answers are judged, and nothing is counted "
            "without the others; run the same command with --on-existing resume to go on"
        )
    return {judgement.item_id: judgement for judgement in log.rows}


def _short_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
