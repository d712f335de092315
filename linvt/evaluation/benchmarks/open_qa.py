"""The four open-ended sets of Table 7, which Video-ChatGPT's judge scores: MSVD-, MSRVTT-, ActivityNet- and TGIF-QA."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from linvt.annotations import read_annotations
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, Verdict, published
from linvt.evaluation.estimates import Estimate, accuracy, mean
from linvt.evaluation.questions import questions_of
from linvt.evaluation.rules.judging import VIDEO_CHATGPT
from linvt.evaluation.scoring import is_correct

_ASK_BRIEFLY = "\nAnswer the question using a single word or phrase."


def _load(folder: Path, options: LoadOptions, *, format: str, files: tuple[str, ...], prompt: str) -> Iterable[Item]:
    # Raises ValueError for a broken row: a test set is never silently thinned.
    for question in questions_of(read_annotations([published(folder, *files)], format)):
        asked = question.question if prompt else question.question.capitalize() + "?"
        yield Item(
            item_id=question.question_id,
            media=(Medium("video", question.media_id),),
            prompt=asked + prompt,
            question=question.question,
            answers=(question.answer,),
            groups={"type": question.family},
        )


def exact_match(item: Item, prediction: str) -> Verdict:
    """Normalised exact match: what is reported, under that name, where there is no judge."""
    correct = any(is_correct(prediction, answer) for answer in item.answers)
    return Verdict(score=float(correct), correct=correct)


def _exact_match_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"exact match": accuracy(rows)}


def _judged_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"accuracy": accuracy(rows), "score": mean(rows)}


def _entry(
    *, name: str, title: str, format: str, files: tuple[str, ...], prompt: str, questions: int, source: str, data: str,
    media: str, lmms_task: str, read_here: str = "made-up rows",
) -> Benchmark:  # fmt: skip
    return Benchmark(
        name=name,
        title=title,
        kind="video",
        table=7,
        columns={f"{title} acc.": "accuracy", f"{title} score": "score"},
        questions=questions,
        source=source,
        data=data,
        media=media,
        load=partial(_load, format=format, files=files, prompt=prompt),
        rule=exact_match,
        rule_name="normalised exact match",
        metrics=_exact_match_metrics,
        judge=VIDEO_CHATGPT,
        judged_metrics=_judged_metrics,
        breakdowns=("type",),
        max_new_tokens=64,
        lmms_tasks=(lmms_task,),
        lmms_metrics=("gpt_eval_accuracy",) if name == "activitynet-qa" else (),
        lmms_judge="*" if name == "activitynet-qa" else None,
        lmms_ours=name != "activitynet-qa",
        read_here=read_here,
        checked="judge's prompt word for word, replies read as its script does; a local judge answers in the tests",
    )


MSVD_QA = _entry(
    name="msvd-qa",
    title="MSVD-QA",
    format="msvd-qa",
    files=("test_qa.json", "test.csv"),
    prompt=_ASK_BRIEFLY,
    questions=13157,
    source="https://github.com/xudejing/video-question-answering; csv: https://github.com/doc-doc/HQGA",
    data="test_qa.json, with youtube_mapping.txt for MSVD's own file names; or HQGA's test.csv",
    media="vid{n}.avi, or MSVD's own names",
    lmms_task="linvt_msvd_qa",
    read_here="val: 6,415",
)
MSRVTT_QA = _entry(
    name="msrvtt-qa",
    title="MSRVTT-QA",
    format="msrvtt-qa",
    files=("test_qa.json", "test.csv"),
    prompt=_ASK_BRIEFLY,
    questions=72821,
    source="https://github.com/xudejing/video-question-answering; csv: https://github.com/doc-doc/HQGA",
    data="test_qa.json, or HQGA's test.csv",
    media="video{n}.mp4",
    lmms_task="linvt_msrvtt_qa",
    read_here="val: 12,278",
)
ACTIVITYNET_QA = _entry(
    name="activitynet-qa",
    title="ActivityNet-QA",
    format="activitynet-qa",
    files=("test_q.json",),
    # As lmms-eval's activitynetqa: the question alone, capitalised, with its question mark.
    prompt="",
    questions=8000,
    source="https://github.com/MILVLG/activitynet-qa",
    data="test_q.json and test_a.json",
    media="v_{name} with any extension",
    lmms_task="activitynetqa",
    read_here="all",
)
TGIF_QA = _entry(
    name="tgif-qa",
    title="TGIF-QA",
    format="tgif-qa",
    files=("Test_frameqa_question.csv",),
    prompt=_ASK_BRIEFLY,
    questions=13691,
    source="https://github.com/YunseokJANG/tgif-qa",
    data="Test_frameqa_question.csv (FrameQA)",
    media="{gif_name}.gif",
    lmms_task="linvt_tgif_qa",
)
