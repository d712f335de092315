"""Tables and a chart from results: per family, over all questions, and over families, each with its interval."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from linvt.evaluation.questions import Question, chance_accuracy
from linvt.evaluation.results import Result
from linvt.evaluation.statistics import mean_score, wilson_score


def summarise(questions: Sequence[Question], results: Sequence[Result]) -> dict[str, Any]:
    """Accuracies by kind of media and method.

    `{kind: {"questions", "families": {family: count}, "chance", "methods": {method: {"overall", "family_mean",
    "families": {family: score}, "missing", "answered"}}}}`. `overall` weighs questions equally, `family_mean` weighs
    families equally. Questions without media (quarantined, say) are counted as missing and in no accuracy.
    """
    summary: dict[str, Any] = {}
    for kind in dict.fromkeys(question.kind for question in questions):
        asked = [question for question in questions if question.kind == kind]
        of_kind: dict[str, list[Result]] = defaultdict(list)
        for result in results:
            if result.kind == kind:
                of_kind[result.method].append(result)
        counts: dict[str, int] = defaultdict(int)
        for question in asked:
            counts[question.family] += 1
        summary[kind] = {
            "questions": len(asked),
            "families": dict(sorted(counts.items())),
            "chance": _chance(asked),
            "methods": {method: _method_summary(rows) for method, rows in of_kind.items()},
        }
    return summary


def _chance(questions: Sequence[Question]) -> dict[str, Any]:
    families = dict.fromkeys(sorted(question.family for question in questions))
    return {
        "overall": chance_accuracy(questions),
        "families": {
            family: chance_accuracy([question for question in questions if question.family == family])
            for family in families
        },
        "without_choices": sum(not question.choices for question in questions),
    }


def _method_summary(rows: Sequence[Result]) -> dict[str, Any]:
    answered = [row for row in rows if row.prediction is not None]
    families: dict[str, list[bool]] = defaultdict(list)
    for row in answered:
        families[row.family].append(row.correct)
    scores = {family: wilson_score(sum(right), len(right)) for family, right in sorted(families.items())}
    return {
        "answered": len(answered),
        "missing": len(rows) - len(answered),
        "overall": asdict(wilson_score(sum(row.correct for row in answered), len(answered))) if answered else None,
        "family_mean": asdict(mean_score(list(scores.values()))) if scores else None,
        "families": {family: asdict(score) for family, score in scores.items()},
    }


def markdown_table(summary: dict[str, Any]) -> str:
    """One table per kind of media: a row per method, a column per family, 95% Wilson intervals in brackets."""
    tables = []
    for kind, part in summary.items():
        families = list(part["families"])
        columns = ["method", "all questions", "mean of families", *families]
        rows = [
            [
                method,
                _cell(scores["overall"]) + (f" ({scores['missing']} missing)" if scores["missing"] else ""),
                _cell(scores["family_mean"]),
                *(_cell(scores["families"].get(family)) for family in families),
            ]
            for method, scores in part["methods"].items()
        ]
        chance = part["chance"]
        if chance["overall"] is not None:
            known = [value for value in chance["families"].values() if value is not None]
            cells = [chance["overall"], sum(known) / len(known), *(chance["families"][family] for family in families)]
            rows.append(["chance", *("" if cell is None else f"{100 * cell:.1f}" for cell in cells)])
        rows.append(["questions", str(part["questions"]), str(len(families)), *map(str, part["families"].values())])
        lines = [columns, ["---"] * len(columns), *rows]
        title = f"{kind} questions: normalised exact match, % [95% Wilson interval]"
        tables.append(title + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return "\n".join(tables)


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    return f"{100 * score['accuracy']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def save_bar_chart(summary: dict[str, Any], path: Path) -> None:
    """Grouped bars, one group per family and one bar per method, with intervals and the chance level, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 1.6 * max(len(part["families"]) + 1 for part in summary.values()), 3.6 * len(summary)))
    axes = figure.subplots(len(summary), 1, squeeze=False)[:, 0]
    for axis, (kind, part) in zip(axes, summary.items(), strict=True):
        groups = ["all", *part["families"]]
        methods = {name: scores for name, scores in part["methods"].items() if scores["overall"] is not None}
        width = 0.8 / max(1, len(methods))
        for i, (method, scores) in enumerate(methods.items()):
            bars = [scores["overall"], *(scores["families"].get(family) for family in part["families"])]
            for x, bar in enumerate(bars):
                if bar is None:
                    continue
                ends = [[bar["accuracy"] - bar["low"]], [bar["high"] - bar["accuracy"]]]
                axis.bar(
                    x + (i - (len(methods) - 1) / 2) * width,
                    bar["accuracy"],
                    width,
                    yerr=ends,
                    color=f"C{i}",
                    capsize=2,
                    label=method if x == 0 else None,
                )
        chances = [part["chance"]["overall"], *(part["chance"]["families"][family] for family in part["families"])]
        for x, chance in enumerate(chances):
            if chance is not None:
                label = "chance" if x == 0 else None
                axis.hlines(chance, x - 0.45, x + 0.45, colors="black", linestyles="dotted", label=label)
        axis.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
        axis.set_ylim(0, 1)
        axis.set_ylabel("exact match")
        axis.set_title(f"{kind} questions, 95% Wilson intervals")
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=120)
