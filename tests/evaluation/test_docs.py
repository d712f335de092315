"""docs/benchmarks.md says of every benchmark what its entry says."""

from pathlib import Path

from linvt.evaluation.benchmarks import BENCHMARKS
from linvt.evaluation.entry import Benchmark

DOCS = Path(__file__).parents[2] / "docs/benchmarks.md"


def line_of(benchmark: Benchmark) -> str:
    main = next(iter(benchmark.columns.values()))
    unit = benchmark.judged_unit if benchmark.judge else benchmark.unit
    judge = f"; judge: {benchmark.judge.name} ({benchmark.judge.judge_there})" if benchmark.judge else ""
    tasks = ", ".join(f"`{task}`" for task in benchmark.lmms_tasks) + (" (ours)" if benchmark.lmms_ours else "")
    cells = [
        f"[{benchmark.title}]({benchmark.source.split('; ')[0].split(', ')[0]}) `{benchmark.name}`",
        f"{benchmark.table}",
        f"{benchmark.questions:,}",
        f"{main}, {unit}",
        f"{benchmark.rule_name}{judge}",
        benchmark.checked,
        benchmark.read_here,
        tasks,
    ]
    return "| " + " | ".join(cells) + " |"


def files_of(benchmark: Benchmark) -> str:
    return f"| `{benchmark.name}` | {benchmark.data} | {benchmark.media} |"


def test_the_docs_list_every_benchmark_as_it_is():
    lines = DOCS.read_text().splitlines()
    expected = [*map(line_of, BENCHMARKS.values()), *map(files_of, BENCHMARKS.values())]
    missing = [line for line in expected if line not in lines]
    assert missing == [], "put these lines into docs/benchmarks.md:\n" + "\n".join(missing)
    assert len([line for line in lines if line.startswith("| `") and line.split("`")[1] in BENCHMARKS]) == len(
        BENCHMARKS
    )
