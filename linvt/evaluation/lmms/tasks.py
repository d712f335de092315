"""A benchmark as a task of lmms-eval: a folder with its questions, its YAML, and a utils.py that leads back here."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from linvt.annotations import MediaFolder
from linvt.evaluation.entry import Benchmark, Item
from linvt.evaluation.results import write_atomically

METRIC = "linvt_main"
"""What the task's number is called in lmms-eval's results: the benchmark's main one."""

_UTILS = '''"""The task's functions are in the library: lmms-eval must be able to import linvt (PYTHONPATH)."""

from linvt.evaluation.lmms.task_functions import (
    aggregate,
    doc_to_messages,
    doc_to_target,
    doc_to_text,
    doc_to_visual,
    process_results,
)

__all__ = ["aggregate", "doc_to_messages", "doc_to_target", "doc_to_text", "doc_to_visual", "process_results"]
'''

_YAML = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_messages: !function utils.doc_to_messages
doc_to_target: !function utils.doc_to_target
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  do_sample: false
metric_list:
  - metric: {metric}
    aggregation: !function utils.aggregate
    higher_is_better: true
metadata:
  - version: 1.0
"""


def task_name(benchmark: Benchmark) -> str:
    return f"linvt_{benchmark.name.replace('-', '_')}"


def export_task(benchmark: Benchmark, items: Iterable[Item], *, media_root: Path, out: Path) -> dict[str, Any]:
    """Writes the task to OUT. Raises ValueError for media that are not there: lmms-eval would stop at the first."""
    folder, root = MediaFolder(media_root), media_root.resolve()
    rows, missing = [], []
    for item in items:
        names = [folder.find(medium.path) for medium in item.media]
        missing += [medium.path for medium, name in zip(item.media, names, strict=True) if name is None]
        rows.append(
            {
                "benchmark": benchmark.name,
                # As text: the loader of lmms-eval would give every row the groups of all others.
                "item": json.dumps(asdict(item), ensure_ascii=False),
                "media": [str(root / name) for name in names if name is not None],
                "prompt": item.prompt,
                "target": item.answers[0] if item.answers else "",
            }
        )
    if missing:
        raise ValueError(f"{len(missing)} media are not below {media_root}, the first: {missing[0]}")
    out.mkdir(parents=True, exist_ok=True)
    path = out.resolve() / "items.jsonl"
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_atomically(out / "utils.py", _UTILS)
    yaml = _YAML.format(
        task=task_name(benchmark), items=json.dumps(str(path)), max_new_tokens=benchmark.max_new_tokens, metric=METRIC
    )
    write_atomically(out / f"{task_name(benchmark)}.yaml", yaml)
    return {"task": task_name(benchmark), "questions": len(rows), "include_path": str(out.resolve())}
