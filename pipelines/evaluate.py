"""Evaluation: the questions that are left, in pieces, to this process or to a pool of Ray actors; answers to disk."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import Any

from linvt.annotations import read_annotations
from linvt.evaluation.config import ENDPOINT_METHODS, METHOD_KINDS, EvaluateConfig
from linvt.evaluation.questions import Question, questions_of
from linvt.evaluation.report import markdown_table, save_bar_chart, summarise
from linvt.evaluation.results import Result, ResultLog, write_atomically
from linvt.evaluation.work import (
    EndpointAnswerer,
    ModelAnswerer,
    Piece,
    identity_of_model,
    pieces_of,
    sha256_of,
)
from pipelines._map_by_ray import map_by_ray
from pipelines._progress import Progress
from pipelines.benchmark import run_benchmark
from pipelines.lmms_eval import run_by_lmms_eval

logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Answers what `config.out` does not hold yet, writes the summary, returns its main numbers.

    Raises ValueError for bad input, also for results in `config.out` that another model, cache or prompt made.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for every question
    if config.benchmark != "qa":
        return run_by_lmms_eval(config) if config.by_lmms_eval else run_benchmark(config)
    started = time.monotonic()

    # 1. What is asked, and what is answered already.
    annotations = read_annotations(config.data, config.format)
    questions = _first(questions_of(annotations, media_prefix=config.media_prefix), config.max_questions)
    if not questions:
        raise ValueError(f"no questions in {', '.join(map(str, config.data))}; annotations need `qa`")
    offered = ENDPOINT_METHODS if config.endpoint else METHOD_KINDS
    kinds = {question.kind for question in questions}
    methods = [method for method in config.methods or offered if METHOD_KINDS[method] in kinds]
    if not methods:
        raise ValueError(f"none of the methods {config.methods} answers {' or '.join(sorted(kinds))} questions")
    identity = _identity(config)
    log = ResultLog(config.out, identity, on_existing=config.on_existing)
    pieces = list(pieces_of(questions, methods, log.done, batch_size=config.batch_size))
    left = sum(piece.num_answers for piece in pieces)
    logger.info("%d questions, methods %s; %d answers are left", len(questions), ", ".join(methods), left)

    # 2. Answer. Every piece is on disk before the next is counted.
    with ExitStack() as session, Progress(left, unit="answer") as progress:
        for results in _answers(config, pieces, session):
            log.append(results)
            progress.advance(len(results))
    log.close()

    # 3. Count. A question without its answer here would be a bug, and nobody should read such a table.
    asked = {question.question_id for question in questions}
    results = [result for result in log.results if result.method in methods and result.question_id in asked]
    expected = sum(METHOD_KINDS[method] == question.kind for method in methods for question in questions)
    if len(results) != expected:
        raise RuntimeError(f"{len(results)} results for {expected} (method, question) pairs in {log.path}")
    return _report(config, identity, questions, results, seconds=time.monotonic() - started)


def _answers(config: EvaluateConfig, pieces: Sequence[Piece], session: ExitStack) -> Iterator[list[Result]]:
    if not pieces:
        return
    if config.endpoint is not None:
        yield from map(session.enter_context(closing(EndpointAnswerer(config))), pieces)
    elif config.num_workers == 0:
        yield from map(ModelAnswerer(config, num_threads=config.threads_per_worker), pieces)
    else:
        yield from _answers_by_ray(config, pieces, session)


def _answers_by_ray(config: EvaluateConfig, pieces: Sequence[Piece], session: ExitStack) -> Iterator[list[Result]]:
    for results in map_by_ray(config, RayAnswerer, list(map(_piece_to_json, pieces)), session):
        yield [Result(**result) for result in json.loads(results)]


class RayAnswerer:
    """For `map_by_ray`: a piece in, its results out, both as JSON."""

    def __init__(self, config: EvaluateConfig, num_threads: int) -> None:
        self._answerer = ModelAnswerer(config, num_threads=num_threads)

    def __call__(self, piece: str) -> str:
        return json.dumps([asdict(result) for result in self._answerer(_piece_from_json(piece))])


def _piece_to_json(piece: Piece) -> str:
    return json.dumps(asdict(piece))


def _piece_from_json(text: str) -> Piece:
    fields = json.loads(text)
    questions = tuple(
        Question(**question | {"choices": tuple(question["choices"]) if question["choices"] else None})
        for question in fields["questions"]
    )
    return Piece(methods=tuple(fields["methods"]), questions=questions)


def _first(questions: list[Question], count: int | None) -> list[Question]:
    if count is None:
        return questions
    by_kind = {kind: [q for q in questions if q.kind == kind] for kind in dict.fromkeys(q.kind for q in questions)}
    return [question for of_kind in by_kind.values() for question in of_kind[:count]]


def _identity(config: EvaluateConfig) -> dict[str, Any]:
    """What the answers depend on. Results under another identity are never mixed in."""
    return {
        "benchmark": config.benchmark,
        "data_sha256": [sha256_of([path]) for path in config.data],
        "format": config.format,
        "media_prefix": config.media_prefix,
        "show_choices": config.show_choices,
        "answers": config.answers,
        **identity_of_model(config),
    }


def _report(
    config: EvaluateConfig,
    identity: dict[str, Any],
    questions: Sequence[Question],
    results: Sequence[Result],
    *,
    seconds: float,
) -> dict[str, Any]:
    kinds = summarise(questions, results)
    summary = {
        "benchmark": config.benchmark,
        "scorer": "normalised exact match",
        "confidence": 0.95,
        "made_with": identity,
        "notes": _notes(config),
        "kinds": kinds,
    }
    write_atomically(config.out / "summary.json", json.dumps(summary, indent=1) + "\n")
    notes = "".join(f"- {note}\n" for note in summary["notes"])
    write_atomically(config.out / "summary.md", f"# {config.benchmark}\n\n{markdown_table(kinds)}\n{notes}")
    save_bar_chart(kinds, config.out / "chart.png")
    scores = {method: score for kind in kinds.values() for method, score in kind["methods"].items()}
    return {
        "benchmark": config.benchmark,
        "questions": len(questions),
        "answers": len(results),
        "missing": sum(result.prediction is None for result in results),
        "accuracy": {method: score["overall"] and score["overall"]["accuracy"] for method, score in scores.items()},
        "family_mean": {
            method: score["family_mean"] and score["family_mean"]["accuracy"] for method, score in scores.items()
        },
        "chance": {kind: part["chance"]["overall"] for kind, part in kinds.items()},
        "out": str(config.out),
        "seconds": round(seconds, 3),
    }


def _notes(config: EvaluateConfig) -> list[str]:
    if config.endpoint is not None:
        return [f"Answers come from {config.endpoint}, model {config.served_model_name!r}."]
    from linvt.evaluation.methods import METHODS

    constrained = "Every answer is one of its question's options, the likeliest token by token (where it lists any)."
    return [
        *([constrained] if config.answers == "choices" else []),
        *(f"`{name}`: {method.description}." for name, method in METHODS.items()),
        "Baselines see the cached frames nearest to the times they ask for, not newly decoded ones, and use the "
        "image-LLM's weights as they were before LoRA. Every method sends the same text.",
        "Intervals take questions as independent; several questions on one video are not quite.",
    ]
