"""DocVQA and TextVQA: reading text in images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from linvt.evaluation.benchmarks.files import read_json
from linvt.evaluation.benchmarks.lettered import take
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, Verdict, published
from linvt.evaluation.estimates import Estimate, mean
from linvt.evaluation.rules.anls import anls
from linvt.evaluation.rules.vqa_accuracy import vqa_accuracy

_ASK_BRIEFLY = "\nAnswer the question using a single word or phrase."
_DOCVQA_FILES = ("test_v1.0.json", "val_v1.0_withQT.json", "val_v1.0.json")


def _load_docvqa(folder: Path, options: LoadOptions) -> Iterator[Item]:
    path = published(folder, *_DOCVQA_FILES)
    for row in read_json(path)["data"]:
        where = f"{path}: question {row.get('questionId')}"
        question_id, question, image = take(row, where, "questionId", "question", "image")
        yield Item(
            item_id=str(question_id),
            media=(Medium("image", image),),
            prompt=question + _ASK_BRIEFLY,
            question=question,
            answers=tuple(row.get("answers") or ()),
        )


def _docvqa_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"ANLS": mean(rows, scale=100)}


DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA test",
    kind="image",
    table=9,
    columns={"DocVQA": "ANLS"},
    questions=5188,
    source="https://rrc.cvc.uab.es/?ch=17, task 1",
    data="test_v1.0.json (no answers: submission.json goes to the challenge's server), or val_v1.0_withQT.json (5,349)",
    media="documents/…",
    load=_load_docvqa,
    rule=lambda item, prediction: Verdict(score=anls(prediction, item.answers), correct=None),
    rule_name="ANLS",
    metrics=_docvqa_metrics,
    max_new_tokens=32,
    submission=lambda answered: [{"questionId": int(item.item_id), "answer": text or ""} for item, text in answered],
    lmms_tasks=("docvqa_val",),
    lmms_metrics=("anls",),
    checked="20,000 random answers against lmms-eval's anls: equal",
)


def _load_textvqa(folder: Path, options: LoadOptions) -> Iterator[Item]:
    path = published(folder, "TextVQA_0.5.1_val.json")
    for row in read_json(path)["data"]:
        where = f"{path}: question {row.get('question_id')}"
        question_id, image_id, question, answers = take(row, where, "question_id", "image_id", "question", "answers")
        yield Item(
            item_id=str(question_id),
            media=(Medium("image", f"train_images/{image_id}.jpg"),),
            prompt=question.capitalize() + _ASK_BRIEFLY,
            question=question,
            answers=tuple(answers),
        )


def _textvqa_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"VQA accuracy": mean(rows, scale=100)}


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA val",
    kind="image",
    table=9,
    columns={"TextVQA": "VQA accuracy"},
    questions=5000,
    source="https://textvqa.org/dataset",
    data="TextVQA_0.5.1_val.json",
    media="train_images/{image_id}.jpg",
    load=_load_textvqa,
    rule=lambda item, prediction: Verdict(score=vqa_accuracy(prediction, item.answers), correct=None),
    rule_name="VQA accuracy",
    metrics=_textvqa_metrics,
    max_new_tokens=32,
    lmms_tasks=("textvqa_val",),
    lmms_metrics=("exact_match",),
    checked="300,000 random texts through MMF's answer processor (lmms-eval's copy): equal",
)
