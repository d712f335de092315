"""VideoVista, MLVU and LongVideoBench: multiple choice about longer videos."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from linvt.evaluation.benchmarks.files import read_rows
from linvt.evaluation.benchmarks.lettered import (
    accuracy_metrics,
    by_letter,
    letter,
    lettered,
    take,
)
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, published
from linvt.evaluation.estimates import Estimate, accuracy, by, mean_over
from linvt.evaluation.rules.choices import first_character, long_video_bench_letter, mlvu_letter

_UNDERSTANDING = (
    "Objects Existence",
    "Objects Count",
    "Action Count",
    "Detailed Description",
    "Brief Description",
    "Event Description",
    "Event Sequence",
    "Optical Character Recognition",
    "Action Recognition",
    "Action Sequence",
    "Action Location",
    "Event Location",
    "Objects Temporal Location",
    "Objects Temporal Relation",
    "Objects Spatial Location",
    "Objects Spatial Relation",
    "Objects Spatial Tracking",
    "Human Activity Analysis",
    "Anomaly Detection",
)
_REASONING = (
    "Relation Reasoning-Image",
    "Relation Reasoning-Video",
    "Event Prediction",
    "Action Prediction",
    "Causal Reasoning",
    "Counterfactual Reasoning",
    "Commonsense Reasoning",
    "Logic Reasoning",
)
_KIND_OF_TYPE = dict.fromkeys(_UNDERSTANDING, "understanding") | dict.fromkeys(_REASONING, "reasoning")


def _load_videovista(folder: Path, options: LoadOptions) -> Iterator[Item]:
    for where, row in read_rows(published(folder, "VideoVista.json")):
        names = ("question_id", "video_name", "Type", "category", "Question", "Answer_Choices", "Answer")
        question_id, video, type_, category, question, choices, answer = take(row, where, *names)
        if type_ not in _KIND_OF_TYPE:
            raise ValueError(f"{where}: unknown 'Type' {type_!r}")
        shown = "\n".join([question, *lettered(choices)])
        yield Item(
            item_id=str(question_id),
            media=(Medium("video", f"merged/{category}/{video.split('.')[1]}/{video}"),),
            prompt=f"{shown}\nAnswer with the option's letter from the given choices directly.",
            question=question,
            answers=(letter(int(answer)),),
            options=tuple(choices),
            groups={"kind": _KIND_OF_TYPE[type_], "type": type_, "category": category},
        )


def _videovista_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return accuracy_metrics(rows) | {kind: accuracy(part) for kind, part in by(rows, "kind").items()}


VIDEO_VISTA = Benchmark(
    name="videovista",
    title="VideoVista",
    kind="video",
    table=8,
    columns={"VideoVista": "accuracy"},
    questions=24906,
    source="https://huggingface.co/datasets/Uni-MoE/VideoVista",
    data="VideoVista.json",
    media="merged/{category}/{second part of the video's name}/{video_name}. Relation reasoning is asked about this "
    "video alone, as the LinVT authors do",
    load=_load_videovista,
    rule=by_letter(first_character),
    rule_name="first character, as in evaluation_videovista.py",
    metrics=_videovista_metrics,
    breakdowns=("kind", "type", "category"),
    lmms_tasks=("linvt_videovista",),
    lmms_ours=True,
    checked="read from the published evaluation_videovista.py; rows made up in the published layout",
)

_MLVU_FILES = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}


def _load_mlvu(folder: Path, options: LoadOptions) -> Iterator[Item]:
    root = published(folder, "json", "MLVU/json", "1_plotQA.json")
    root = root if root.is_dir() else root.parent
    for task, file in _MLVU_FILES.items():
        for number, (where, row) in enumerate(read_rows(published(root, f"{file}.json"))):
            video, question, candidates, answer = take(row, where, "video", "question", "candidates", "answer")
            shown = "\n".join([f"Question: {question}", "Options:", *lettered(candidates, "({}) {}")])
            # Two published answers are none of their options: nobody is right there, as in the benchmark's own script.
            right = (letter(candidates.index(answer)),) if answer in candidates else ("@",)
            yield Item(
                item_id=f"{task}/{number}",
                media=(Medium("video", f"{file}/{video}"),),
                prompt=f"{shown}\nOnly give the best option.\nBest option: (",
                question=question,
                answers=right,
                options=tuple(candidates),
                groups={"task": task},
            )


def _mlvu_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"M-Avg": mean_over(rows, "task"), **accuracy_metrics(rows)}


MLVU = Benchmark(
    name="mlvu",
    title="MLVU",
    kind="video",
    table=8,
    columns={"MLVU M-Avg": "M-Avg"},
    questions=2175,
    source="https://huggingface.co/datasets/MLVU/MVLU",
    data="MLVU/json/{1_plotQA, …, 7_topic_reasoning}.json: the multiple-choice tasks of the dev set",
    media="MLVU/video: 1_plotQA/{video}, …",
    load=_load_mlvu,
    rule=by_letter(mlvu_letter),
    rule_name="letter before the first bracket, as in choice_bench.py",
    read_here="all",
    metrics=_mlvu_metrics,
    breakdowns=("task",),
    lmms_tasks=("mlvu_dev",),
    lmms_metrics=("mlvu_percetion_score",),
    lmms_scale=1,
    checked="100,000 random answers against the published `check_ans`: equal; all 2,175 published questions load",
)


def _load_long_video_bench(folder: Path, options: LoadOptions) -> Iterator[Item]:
    for where, row in read_rows(published(folder, "lvb_val.json", "lvb_test_wo_gt.json")):
        names = ("id", "video_path", "question", "candidates", "duration_group", "question_category")
        item_id, video, question, candidates, duration, category = take(row, where, *names)
        right = row.get("correct_choice")
        shown = "\n".join([question, *lettered(candidates)])
        yield Item(
            item_id=item_id,
            media=(Medium("video", f"videos/{video}"),),
            prompt=f"{shown}\nAnswer with the option's letter from the given choices directly.\n",
            question=question,
            answers=() if right is None else (letter(int(right)),),
            options=tuple(candidates),
            groups={"duration": str(duration), "category": category},
        )


LONG_VIDEO_BENCH = Benchmark(
    name="longvideobench",
    title="LongVideoBench",
    kind="video",
    table=8,
    columns={"LongVideoBench": "accuracy"},
    questions=1337,
    source="https://huggingface.co/datasets/longvideobench/LongVideoBench",
    data="lvb_val.json (or lvb_test_wo_gt.json, 5,341 questions without answers)",
    media="videos/{video_path}",
    load=_load_long_video_bench,
    rule=by_letter(long_video_bench_letter),
    rule_name="first capital A to E, as in lmms-eval",
    metrics=accuracy_metrics,
    breakdowns=("duration", "category"),
    max_new_tokens=32,
    submission=lambda answered: {item.item_id: text or "" for item, text in answered},
    lmms_tasks=("longvideobench_val_v",),
    lmms_metrics=("lvb_acc",),
    checked="100,000 random answers against lmms-eval's parser, which the benchmark's authors wrote: equal but for its "
    "random guesses",
)
