"""POPE, HallusionBench and MME: yes or no about images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from linvt.evaluation.benchmarks.files import read_rows
from linvt.evaluation.benchmarks.lettered import take, verdict
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, Verdict, published
from linvt.evaluation.estimates import Estimate, accuracy, bootstrap, by, share
from linvt.evaluation.rules.judging import HALLUSION_BENCH
from linvt.evaluation.rules.yes_no import (
    MME_COGNITION,
    MME_PERCEPTION,
    all_right,
    hallusion_answer,
    mme_answer,
    pope_answer,
)

_ASK_BRIEFLY = "\nAnswer the question using a single word or phrase."
_POPE_PARTS = ("random", "popular", "adversarial")


def _load_pope(folder: Path, options: LoadOptions) -> Iterator[Item]:
    root = published(folder, "output/coco", "coco", "coco_pope_random.json")
    root = root if root.is_dir() else root.parent
    for part in _POPE_PARTS:
        for where, row in read_rows(published(root, f"coco_pope_{part}.json")):
            question_id, image, text, label = take(row, where, "question_id", "image", "text", "label")
            yield Item(
                item_id=f"{part}/{question_id}",
                media=(Medium("image", image),),
                prompt=text.strip() + _ASK_BRIEFLY,
                question=text,
                answers=(label,),
                groups={"part": part},
            )


def _said_yes(row: Scored) -> bool:
    """What an answer says is known from what is right and whether it is; where nothing was said it is wrong."""
    return (row.answers[0] == "yes") == row.correct


def _pope_counts(rows: Sequence[Scored]) -> tuple[float, ...]:
    said_yes = [row for row in rows if _said_yes(row)]
    return (
        sum(row.answers[0] == "yes" for row in said_yes),
        len(said_yes),
        sum(row.answers[0] == "yes" for row in rows),
        len(rows),
    )


def _f1(counts: np.ndarray) -> np.ndarray:
    # 2·precision·recall / (precision + recall) = 2·TP / (said yes + is yes)
    return 100 * 2 * counts[..., 0] / (counts[..., 1] + counts[..., 2])


def _pope_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {
        "F1": bootstrap(rows, _pope_counts, _f1),
        "accuracy": accuracy(rows),
        "precision": bootstrap(rows, _pope_counts, lambda counts: 100 * counts[..., 0] / counts[..., 1]),
        "recall": bootstrap(rows, _pope_counts, lambda counts: 100 * counts[..., 0] / counts[..., 2]),
        "yes ratio": bootstrap(rows, _pope_counts, lambda counts: 100 * counts[..., 1] / counts[..., 3]),
    } | {f"F1 {part}": bootstrap(of_part, _pope_counts, _f1) for part, of_part in by(rows, "part").items()}


POPE = Benchmark(
    name="pope",
    title="POPE",
    kind="image",
    table=9,
    columns={"POPE": "F1"},
    questions=9000,
    source="https://github.com/RUCAIBox/POPE",
    data="output/coco/coco_pope_{random, popular, adversarial}.json",
    media="val2014 of COCO: COCO_val2014_….jpg",
    load=_load_pope,
    rule=lambda item, prediction: verdict(pope_answer(prediction) == item.answers[0]),
    rule_name="POPE's evaluate.py; F1 over all three parts",
    read_here="all",
    metrics=_pope_metrics,
    breakdowns=("part",),
    max_new_tokens=128,
    lmms_tasks=("pope",),
    lmms_metrics=("pope_f1_score",),
    checked="the published evaluate.py on random answers to its published questions: equal",
)


def _load_hallusion(folder: Path, options: LoadOptions) -> Iterator[Item]:
    for where, row in read_rows(published(folder, "HallusionBench.json")):
        names = ("category", "subcategory", "set_id", "figure_id", "question_id", "question", "gt_answer")
        category, subcategory, set_id, figure_id, question_id, question, right = take(row, where, *names)
        details, file = take(row, where, "gt_answer_details", "filename")
        of_set = f"{category}_{subcategory}_{set_id}"
        yield Item(
            item_id=f"{of_set}_{figure_id}_{question_id}",
            # Some questions of the part VS are asked without a figure.
            media=(Medium("image", file.removeprefix("./")),) if file else (),
            prompt=question,
            question=question,
            answers=("yes" if str(right) == "1" else "no", details),
            groups={
                "category": category,
                "subcategory": f"{category}/{subcategory}",
                "figure": f"{of_set}_{figure_id}",
                "question": f"{of_set}_{question_id}",
                **({"without figure": "yes"} if category == "VS" and str(figure_id) == "0" else {}),
            },
        )


def _hallusion_rule(item: Item, prediction: str) -> Verdict:
    return verdict(hallusion_answer(prediction) == item.answers[0])


def _is_right(row: Scored) -> bool:
    """Where there is no figure, a judge's "unclear" (½) is right: the model cannot know, and says so."""
    return bool(row.correct) or ("without figure" in row.groups and row.score == 0.5)


def _hallusion_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    with_figure = [row for row in rows if "without figure" not in row.groups]
    return {
        "aAcc": share([_is_right(row) for row in rows]),
        "fAcc": share(all_right([(row.groups["figure"], _is_right(row)) for row in with_figure])),
        "qAcc": share(all_right([(row.groups["question"], _is_right(row)) for row in rows])),
    }


HALLUSION = Benchmark(
    name="hallusionbench",
    title="HallusionBench",
    kind="image",
    table=9,
    columns={"HallusionBench aAcc": "aAcc", "fAcc": "fAcc", "qAcc": "qAcc"},
    questions=1129,
    source="https://github.com/tianyi-lab/HallusionBench",
    data="HallusionBench.json",
    media="hallusion_bench.zip, unpacked: VD/…, VS/…",
    load=_load_hallusion,
    rule=_hallusion_rule,
    rule_name="yes or no among the words, as in VLMEvalKit",
    read_here="all",
    metrics=_hallusion_metrics,
    judge=HALLUSION_BENCH,
    judged_metrics=_hallusion_metrics,
    breakdowns=("category", "subcategory"),
    max_new_tokens=128,
    lmms_tasks=("hallusion_bench_image",),
    lmms_metrics=("aAcc",),
    lmms_judge="gpt-4",
    lmms_scale=1,
    checked="all 1,129 published questions with random verdicts against its utils.py: aAcc, fAcc and qAcc equal",
)


def _load_mme(folder: Path, options: LoadOptions) -> Iterator[Item]:
    root = folder / "MME_Benchmark_release_version"
    root = root if root.is_dir() else folder
    for task in (*MME_PERCEPTION, *MME_COGNITION):
        texts = published(root, f"{task}/questions_answers_YN", task)
        images = texts.with_name("images") if texts.name == "questions_answers_YN" else texts
        for path in sorted(texts.glob("*.txt")):
            image = next((file for file in sorted(images.glob(f"{path.stem}.*")) if file.suffix != ".txt"), None)
            if image is None:
                raise ValueError(f"{path}: no image of this name in {images}")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
                if not line.strip():
                    continue
                question, _, answer = line.rpartition("\t")
                answer = answer.strip().lower()
                if not question or answer not in ("yes", "no"):
                    raise ValueError(f"{path}:{number + 1}: expected a question, a tab, and Yes or No")
                yield Item(
                    item_id=f"{task}/{path.stem}/{number}",
                    media=(Medium("image", image.relative_to(root).as_posix()),),
                    prompt=question.replace(" Please answer yes or no.", "") + _ASK_BRIEFLY,
                    question=question,
                    answers=(answer,),
                    groups={"task": task},
                )


def _mme_counts(tasks: Sequence[str]):
    def counts(rows: Sequence[Scored]) -> list[float]:
        """Of the questions on one image: for each task, right questions, questions, images all right, images."""
        found = []
        for task in tasks:
            of_task = [bool(row.correct) for row in rows if row.groups["task"] == task]
            found += [sum(of_task), len(of_task), float(bool(of_task) and all(of_task)), float(bool(of_task))]
        return found

    return counts


def _mme_points(counts: np.ndarray) -> np.ndarray:
    """The sum over tasks of acc + acc+, each from 0 to 100."""
    parts = counts.reshape(*counts.shape[:-1], -1, 4)
    points = 100 * parts[..., 0] / parts[..., 1] + 100 * parts[..., 2] / parts[..., 3]
    return np.nansum(points, axis=-1)


def _mme_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    every = [*MME_PERCEPTION, *MME_COGNITION]

    def points(tasks: Sequence[str]) -> Estimate:
        of_tasks = [row for row in rows if row.groups["task"] in tasks]
        return bootstrap(of_tasks, _mme_counts(tasks), _mme_points)

    named = {"total": every, "perception": MME_PERCEPTION, "cognition": MME_COGNITION} | {
        task: [task] for task in every
    }
    there = {row.groups["task"] for row in rows}
    return {name: points(tasks) for name, tasks in named.items() if there & set(tasks)}


MME = Benchmark(
    name="mme",
    title="MME",
    kind="image",
    table=9,
    columns={"MME": "total"},
    questions=2374,
    source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
    data="MME_Benchmark_release_version: a folder a task, with images and texts beside them or in images and "
    "questions_answers_YN",
    media="the same folder",
    load=_load_mme,
    rule=lambda item, prediction: verdict(mme_answer(prediction) == item.answers[0]),
    rule_name="yes or no among the first four characters, as in calculation.py",
    metrics=_mme_metrics,
    unit="points",
    lmms_tasks=("mme",),
    lmms_metrics=("mme_perception_score", "mme_cognition_score"),
    lmms_scale=1,
    checked="acc + acc+ against lmms-eval's mme_aggregate_results: equal; its parser also takes y and n",
)
