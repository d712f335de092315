"""TempCompass: multiple choice, yes or no, and caption matching, by the benchmark's rules alone.

Its fourth task, captioning, and the answers that no rule can read need its judge, whose prompts may not be used
commercially and are not here: lmms-eval's tasks ask that judge.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from linvt.evaluation.benchmarks.files import read_json
from linvt.evaluation.benchmarks.lettered import take, verdict
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, Verdict, published
from linvt.evaluation.estimates import Estimate, accuracy, by
from linvt.evaluation.rules.tempcompass import caption_matching_is_right, multi_choice_is_right, yes_no_is_right

_ASK = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
}


def _load(folder: Path, options: LoadOptions) -> Iterator[Item]:
    root = published(folder, "questions", "multi-choice.json")
    root = root if root.is_dir() else root.parent
    for task, ask in _ASK.items():
        path = published(root, f"{task}.json")
        for video, aspects in read_json(path).items():
            for aspect, rows in aspects.items():
                for number, row in enumerate(rows):
                    question, answer = take(row, f"{path}: {video}, {aspect}", "question", "answer")
                    yield Item(
                        item_id=f"{task}/{video}/{aspect}/{number}",
                        media=(Medium("video", f"{video}.mp4"),),
                        prompt=question + ask,
                        question=question,
                        answers=(answer,),
                        groups={"task": task, "aspect": aspect},
                    )


def _rule(item: Item, prediction: str) -> Verdict:
    text, answer = prediction.replace("</s>", "").strip(), item.answers[0]
    match item.groups["task"]:
        case "multi-choice":
            right = multi_choice_is_right(text, answer)
        case "yes_no":
            right = yes_no_is_right(text, answer)
        case _:
            right = caption_matching_is_right(text, item.question, answer)
    return verdict(bool(right))


def _metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"accuracy": accuracy(rows)} | {task: accuracy(part) for task, part in by(rows, "task").items()}


TEMPCOMPASS = Benchmark(
    name="tempcompass",
    title="TempCompass",
    kind="video",
    table=8,
    columns={"TempCompass": "accuracy"},
    questions=5536,
    source="https://github.com/llyx97/TempCompass",
    data="questions/{multi-choice, yes_no, caption_matching}.json; captioning needs a judge and is left to lmms-eval",
    media="{video}.mp4, the release's videos/",
    load=_load,
    rule=_rule,
    read_here="all",
    rule_name="rules of its eval scripts with --disable_llm, without captioning",
    metrics=_metrics,
    breakdowns=("task", "aspect"),
    lmms_tasks=(
        "tempcompass_multi_choice",
        "tempcompass_yes_no",
        "tempcompass_caption_matching",
        "tempcompass_captioning",
    ),
    lmms_metrics=("avg_accuracy",),
    lmms_judge="gpt-3.5-turbo-1106",
    lmms_scale=1,
    checked="verdicts on the 16,584 published answers of Gemini, Video-LLaVA and Reka: equal to the published ones "
    "wherever a rule applied",
)
