"""From scored answers to a summary, and from the summaries in one folder to the paper's tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from linvt.evaluation.benchmarks import BENCHMARKS
from linvt.evaluation.entry import MISSING, UNLABELLED, Benchmark, Scored
from linvt.evaluation.estimates import Estimate, by
from linvt.evaluation.lmms import LMMS_EVAL
from linvt.evaluation.paper import PAPER_ROWS, TABLE_TITLES
from linvt.evaluation.results import write_atomically
from linvt.evaluation.rules.judging import JudgeProtocol

SUMMARY = "summary.json"


def summarise_benchmark(
    benchmark: Benchmark,
    rows: Sequence[Scored],
    *,
    asked_of: int,
    judge: dict[str, Any] | None,
    made_with: dict[str, Any],
    model: str,
) -> dict[str, Any]:
    """The benchmark's own numbers, its breakdowns, what was left without an answer, and what all of it depends on.

    `asked_of` is how many questions the files hold: fewer rows are a part of the benchmark, and are marked as such.
    """
    labelled = [row for row in rows if row.by != UNLABELLED]
    metrics = benchmark.judged_metrics if judge is not None else benchmark.metrics
    assert metrics is not None
    numbers = metrics(labelled) if labelled else {}
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "model": model,
        "harness": "own",
        "table": benchmark.table,
        "scored_by": f"judge: {judge['protocol']}" if judge else benchmark.rule_name,
        "judge": judge,
        "is_judged": judge is not None,
        "needs_judge": benchmark.judge is not None,
        "unit": benchmark.judged_unit if judge else benchmark.unit,
        "questions": len(rows),
        "questions_in_files": asked_of,
        "published_questions": benchmark.questions,
        "missing": sum(row.by == MISSING for row in rows),
        "empty": sum(row.prediction is not None and not row.prediction.strip() for row in rows),
        "without_published_answer": len(rows) - len(labelled),
        "confidence": 0.95,
        "metrics": {name: asdict(number) for name, number in numbers.items()},
        "breakdowns": {
            group: {value: asdict(_main(metrics(part))) for value, part in sorted(by(labelled, group).items())}
            for group in benchmark.breakdowns
        },
        "made_with": made_with,
        "notes": _notes(benchmark, rows, labelled, asked_of=asked_of, judge=judge),
    }


def _main(numbers: Mapping[str, Estimate]) -> Estimate:
    return next(iter(numbers.values()))


def _notes(
    benchmark: Benchmark,
    rows: Sequence[Scored],
    labelled: Sequence[Scored],
    *,
    asked_of: int,
    judge: dict[str, Any] | None,
) -> list[str]:
    scored_by = f"the judge {judge['model']}" if judge else benchmark.rule_name
    notes = [f"Scored by: {scored_by}."]
    if benchmark.judge is not None and judge is None:
        notes.append(
            f"The benchmark's own number comes from a judge ({benchmark.judge.judge_there}); this one does not, and "
            "cannot be compared with it."
        )
    if len(rows) < asked_of:
        notes.append(f"Only the first {len(rows)} of {asked_of} questions.")
    if asked_of != benchmark.questions:
        notes.append(f"The files hold {asked_of} questions, the published benchmark has {benchmark.questions}.")
    missing = sum(row.by == MISSING for row in rows)
    if missing:
        notes.append(
            f"{missing} questions had no medium to ask about, or one that cannot be decoded; they count as wrong."
        )
    if len(labelled) < len(rows):
        notes.append(
            f"{len(rows) - len(labelled)} questions have no published answer: submission.json is what the benchmark's "
            "server takes."
        )
    return notes


def summary_markdown(summary: dict[str, Any]) -> str:
    """The numbers with their intervals, the breakdowns, the notes."""
    lines = [f"# {summary['title']}", "", f"{summary['model']}, {summary['questions']} questions.", ""]
    lines += ["| | value | 95% interval | of |", "|---|---|---|---|"]
    lines += [_line(name, number) for name, number in summary["metrics"].items()]
    for group, parts in summary["breakdowns"].items():
        if len(parts) > 1:
            lines += ["", f"By {group}:", "", "| | value | 95% interval | of |", "|---|---|---|---|"]
            lines += [_line(value, number) for value, number in parts.items()]
    return "\n".join([*lines, "", *(f"- {note}" for note in summary["notes"])]) + "\n"


def _line(name: str, number: dict[str, Any]) -> str:
    interval = f"{_shown(number['low'])} to {_shown(number['high'])} ({number['interval']})"
    return f"| {name} | {_shown(number['value'])} | {interval} | {number['count']} |"


def judge_record(
    model: str | None, url: str | None, protocol: JudgeProtocol | None, *, models: Sequence[str]
) -> dict[str, Any] | None:
    """What a summary says of its judge; None without one. `models` are the names by which it called itself."""
    if model is None:
        return None
    return {
        "model": model,
        "url": url,
        "protocol": protocol.name if protocol else "lmms-eval's",
        "protocol_version": protocol.version if protocol else f"lmms-eval {LMMS_EVAL}",
        "judge_there": protocol.judge_there if protocol else None,
        "models_as_reported": sorted(set(models)),
        "summarised_on": datetime.now(UTC).date().isoformat(),
    }


def _shown(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def report_files(out: Path) -> list[Path]:
    """What a finished run leaves; a run that starts over removes it, or its old numbers would stay in the tables."""
    return [out / SUMMARY, out / "summary.md", out / "results.jsonl"]


def read_summaries(out: Path) -> list[dict[str, Any]]:
    """The summaries of all benchmarks that ran into OUT."""
    paths = sorted(out.glob(f"*/{SUMMARY}"))
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return [summary for summary in summaries if summary.get("benchmark") in BENCHMARKS]


def tables_markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """The paper's Tables 7, 8 and 9: what is known of the paper's LinVT rows, and a row for each model that was run.

    Marks behind a number say what it is not: "*" not the judge's, "†" not the whole benchmark, "‡" by another harness.
    """
    text = [
        "# The paper's Tables 7, 8 and 9",
        "",
        "Numbers in brackets are 95% intervals. Empty cells: not run, or not known to us from the paper.",
        "",
    ]
    for table, title in TABLE_TITLES.items():
        columns = [name for entry in BENCHMARKS.values() if entry.table == table for name in entry.columns]
        rows = [[name, *(_paper_cell(cells, column) for column in columns)] for name, cells in PAPER_ROWS.items()]
        for model in dict.fromkeys(summary["model"] for summary in summaries):
            cells = _own_cells([summary for summary in summaries if summary["model"] == model])
            rows.append([model, *(cells.get(column, "") for column in columns)])
        text += [f"## Table {table}: {title}", ""]
        shown = [row for row in rows if any(row[1:])]
        text += ["| " + " | ".join(row) + " |" for row in [["model", *columns], ["---"] * (len(columns) + 1), *shown]]
        text.append("")
    return "\n".join([*text, *_footnotes(summaries)]) + "\n"


def _paper_cell(cells: Mapping[str, Any], column: str) -> str:
    return f"{cells[column].value:g}" if column in cells else ""


def _own_cells(summaries: Sequence[dict[str, Any]]) -> dict[str, str]:
    cells = {}
    for summary in summaries:
        if not summary["metrics"]:
            continue
        marks = "*" if summary["needs_judge"] and not summary["is_judged"] else ""
        whole = max(summary["questions_in_files"], summary["published_questions"])
        marks += "†" if summary["questions"] < whole else ""
        marks += "‡" if summary["harness"] != "own" else ""
        for number, (column, metric) in enumerate(BENCHMARKS[summary["benchmark"]].columns.items()):
            # Without the judge there is one number, under its own name; it stands in the first column.
            main = next(iter(summary["metrics"])) if number == 0 else None
            value = summary["metrics"].get(metric) or (summary["metrics"][main] if main else None)
            if value is not None:
                interval = f" [{_shown(value['low'])}, {_shown(value['high'])}]" if value["low"] is not None else ""
                cells[column] = _shown(value["value"]) + marks + interval
    return cells


def _footnotes(summaries: Sequence[dict[str, Any]]) -> list[str]:
    sources = sorted({cell.source for cells in PAPER_ROWS.values() for cell in cells.values()})
    lines = [
        f"- The paper's numbers were seen in: {'; '.join(sources)}. Which table a benchmark stands in follows the "
        "paper's order: open-ended, video, image.",
        "- \\* not the judge's number, which this column has in the paper: scored without a judge, see the benchmark's "
        "summary.md.",
        "- † not all of the published questions.",
        "- ‡ by lmms-eval.",
        "- The paper trains on sets that some of these are drawn from, and calls some of those zero-shot.",
    ]
    judges = sorted(
        f"{summary['title']}: {summary['judge']['model']} (protocol {summary['judge']['protocol']} "
        f"{summary['judge']['protocol_version']})"
        for summary in summaries
        if summary["judge"]
    )
    return lines + (
        [f"- Judges: {'; '.join(judges)}. Another judge may move a number by ten points."] if judges else []
    )


def write_tables(out: Path) -> Path:
    """Writes OUT/tables.md from what OUT holds; returns its path."""
    path = out / "tables.md"
    write_atomically(path, tables_markdown(read_summaries(out)))
    return path
