"""The benchmarks' own numbers, worked out by hand on a few answers."""

import numpy as np
import pytest

from linvt.evaluation.benchmarks import BENCHMARKS
from linvt.evaluation.entry import Scored
from linvt.evaluation.estimates import accuracy, bootstrap, mean, mean_over


def row(
    number: int, *, score: float = 0.0, correct: bool | None = None, media: str = "", answers=("yes",), **groups: str
) -> Scored:
    return Scored(
        item_id=str(number),
        media=(media or f"{number}.png",),
        groups=groups,
        question="?",
        answers=answers,
        prediction="",
        score=float(correct) if correct is not None and not score else score,
        correct=correct,
        by="rule",
    )


def values(name: str, rows: list[Scored], *, judged: bool = False) -> dict[str, float]:
    benchmark = BENCHMARKS[name]
    metrics = benchmark.judged_metrics if judged else benchmark.metrics
    assert metrics is not None
    estimates = metrics(rows)
    assert all(found.low <= found.value <= found.high for found in estimates.values())
    return {key: found.value for key, found in estimates.items()}


def test_pope_counts_a_yes_as_positive():
    # TP 2, FN 1, FP 1, TN 2
    rights = [("yes", True)] * 2 + [("yes", False)] + [("no", False)] + [("no", True)] * 2
    rows = [row(i, correct=right, answers=(label,), part="random") for i, (label, right) in enumerate(rights)]
    found = values("pope", rows)
    assert found["F1"] == pytest.approx(200 / 3)
    assert (found["precision"], found["recall"]) == (pytest.approx(200 / 3), pytest.approx(200 / 3))
    assert found["yes ratio"] == 50
    assert found["F1 random"] == found["F1"]


def test_mme_adds_acc_and_acc_plus_over_tasks():
    rows = [
        row(0, correct=True, media="a", task="count"),
        row(1, correct=True, media="a", task="count"),
        row(2, correct=True, media="b", task="count"),
        row(3, correct=False, media="b", task="count"),
        row(4, correct=True, media="c", task="code_reasoning"),
        row(5, correct=True, media="c", task="code_reasoning"),
    ]
    found = values("mme", rows)
    assert found["count"] == 75 + 50
    assert (found["perception"], found["cognition"], found["total"]) == (125, 200, 325)


def test_hallusion_accuracies_per_question_figure_and_pair():
    def of(number: int, figure: str, question: str, correct: bool, score: float | None = None) -> Scored:
        groups = {"without figure": "yes"} if figure == "s_0" else {}
        return row(number, correct=correct, score=score or float(correct), figure=figure, question=question, **groups)

    rows = [of(0, "s_1", "s_q0", True), of(1, "s_1", "s_q1", True), of(2, "s_2", "s_q0", True),
            of(3, "s_2", "s_q1", False), of(4, "s_0", "s_q0", False, 0.5)]  # fmt: skip
    found = values("hallusionbench", rows, judged=True)
    # "Unclear" is right where there is no figure, and such questions belong to no figure.
    assert found == {"aAcc": 80, "fAcc": 50, "qAcc": 50}


def test_tasks_weigh_the_same_in_mvbench_and_mlvu():
    rows = [row(i, correct=i < 3, task="a") for i in range(4)] + [row(9, correct=False, task="b")]
    assert values("mvbench", rows) == {"mean of tasks": 37.5, "accuracy": 60}
    assert values("mlvu", rows)["M-Avg"] == 37.5


def test_video_mme_reports_long_videos_apart():
    rows = [row(0, correct=True, duration="short"), row(1, correct=False, duration="long")]
    assert values("video-mme", rows) == {"accuracy": 50, "short": 100, "long": 0}


def test_judged_numbers():
    rows = [row(0, correct=True, score=4), row(1, correct=False, score=1)]
    assert values("msvd-qa", rows, judged=True) == {"accuracy": 50, "score": 2.5}
    rows = [
        row(0, score=3, CP="yes", perception="yes"),
        row(1, score=0, TR="yes", CP="yes", perception="yes", reasoning="yes"),
    ]
    found = values("mmbench-video", rows, judged=True)
    assert found == {"mean score": 1.5, "perception": 1.5, "reasoning": 0, "CP": 1.5, "TR": 0}
    rows = [row(0, score=0.5, ocr="yes", math="yes"), row(1, score=1.0, rec="yes")]
    assert values("mm-vet", rows, judged=True) == {"score": 75, "rec": 100, "ocr": 50, "math": 50}


def test_intervals_cover_what_they_should():
    """About 95% of intervals hold the true mean, with four correlated answers on each medium."""
    random, held = np.random.default_rng(0), 0
    for _ in range(200):
        of_media = random.beta(2, 2, size=60)
        rows = [
            row(4 * m + i, score=float(random.random() < p), media=str(m))
            for m, p in enumerate(of_media)
            for i in range(4)
        ]
        estimate = mean(rows)
        held += estimate.low <= 0.5 <= estimate.high
    assert 180 <= held <= 198


def test_bootstrap_is_the_same_every_time_and_narrows():
    rows = [row(i, score=float(i % 3 == 0), correct=i % 3 == 0, task=str(i % 2)) for i in range(90)]
    assert mean(rows) == mean(rows)
    few, many = mean(rows[:30]), mean(rows)
    assert many.high - many.low < few.high - few.low
    assert accuracy(rows).value == pytest.approx(100 * mean(rows).value) == pytest.approx(mean_over(rows, "task").value)
    ratio = bootstrap(
        rows, lambda part: (sum(r.score for r in part), len(part)), lambda sums: sums[..., 0] / sums[..., 1]
    )
    assert ratio == mean(rows)
