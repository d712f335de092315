"""What lmms-eval calls for the tasks that `export` writes. Runs in lmms-eval's environment: no torch, no transformers.

A judge is named by LINVT_JUDGE_URL, LINVT_JUDGE_MODEL and, if it needs a key, LINVT_JUDGE_KEY_ENV (the name of the
variable that holds it). A judge that gives no verdict stops lmms-eval.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from PIL import Image

from linvt.evaluation.benchmarks import BENCHMARKS
from linvt.evaluation.entry import Benchmark, Scored
from linvt.evaluation.judge import Judge
from linvt.evaluation.lmms.tasks import METRIC
from linvt.evaluation.scored import item_from_json, scored


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    if BENCHMARKS[doc["benchmark"]].kind == "video":
        return doc["media"]
    return [Image.open(path).convert("RGB") for path in doc["media"]]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return doc["prompt"]


def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> list[dict[str, Any]]:
    """Says what each medium is. Left to itself, lmms-eval goes by the file's name, and sends .webm as audio."""
    kind = BENCHMARKS[doc["benchmark"]].kind
    media = [{"type": kind, "url": medium} for medium in doc_to_visual(doc)]
    return [{"role": "user", "content": [*media, {"type": "text", "text": doc_to_text(doc)}]}]


def doc_to_target(doc: dict[str, Any]) -> str:
    return doc["target"]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    benchmark, item = BENCHMARKS[doc["benchmark"]], item_from_json(json.loads(doc["item"]))
    prediction, judge = results[0], _judge(benchmark.name)
    judgement = None
    if judge is not None and prediction.strip() and item.answers:
        judgement = judge.judge(item.item_id, question=item.question, answer=item.answers[-1], prediction=prediction)
    return {METRIC: _to_json(benchmark, scored(benchmark, item, prediction, judgement, is_judged=judge is not None))}


def aggregate(results: Sequence[dict[str, Any]], args: Any = None) -> float:
    """The benchmark's main number."""
    benchmark = BENCHMARKS[results[0]["benchmark"]]
    rows = [row_from_json(result) for result in results]
    metrics = benchmark.judged_metrics if _judge(benchmark.name) is not None else benchmark.metrics
    assert metrics is not None
    return next(iter(metrics(rows).values())).value


def row_from_json(fields: dict[str, Any]) -> Scored:
    """The row that lmms-eval logged."""
    row = {name: value for name, value in fields.items() if name != "benchmark"}
    row["media"], row["answers"] = tuple(row["media"]), tuple(row["answers"])
    return Scored(**row)


def _to_json(benchmark: Benchmark, row: Scored) -> dict[str, Any]:
    return {"benchmark": benchmark.name} | asdict(row)


@cache
def _judge(name: str) -> Judge | None:
    url, protocol = os.environ.get("LINVT_JUDGE_URL"), BENCHMARKS[name].judge
    if url is None or protocol is None:
        return None
    return Judge(url, os.environ["LINVT_JUDGE_MODEL"], protocol, key_env=os.environ.get("LINVT_JUDGE_KEY_ENV") or None)
