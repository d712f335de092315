"""MM-Vet: open questions about images, which a judge scores from 0 to 1."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from linvt.evaluation.benchmarks.files import read_json
from linvt.evaluation.benchmarks.lettered import take
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, Verdict, published
from linvt.evaluation.estimates import Estimate, accuracy, mean
from linvt.evaluation.rules.judging import MM_VET
from linvt.evaluation.scoring import normalise_answer

_CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


def _load(folder: Path, options: LoadOptions) -> Iterator[Item]:
    path = published(folder, "mm-vet.json")
    for item_id, row in read_json(path).items():
        image, question, answer, capabilities = take(
            row, f"{path}: {item_id}", "imagename", "question", "answer", "capability"
        )
        yield Item(
            item_id=item_id,
            media=(Medium("image", image),),
            prompt=question,
            question=question,
            answers=(answer,),
            groups=dict.fromkeys(capabilities, "yes"),
        )


def _exact_match(item: Item, prediction: str) -> Verdict:
    """Every part joined by <AND> must be among those the answer has; any of the alternatives of an <OR> will do."""
    said = f" {normalise_answer(prediction)} "
    alternatives = item.answers[0].split("<OR>")
    correct = any(
        all(f" {normalise_answer(part)} " in said for part in alternative.split("<AND>"))
        for alternative in alternatives
    )
    return Verdict(score=float(correct), correct=correct)


def _judged_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    parts = {name: [row for row in rows if name in row.groups] for name in _CAPABILITIES}
    return {"score": mean(rows, scale=100)} | {name: mean(part, scale=100) for name, part in parts.items() if part}


def _metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"answer contained": accuracy(rows)}


MM_VET_BENCHMARK = Benchmark(
    name="mm-vet",
    title="MM-Vet",
    kind="image",
    table=9,
    columns={"MM-Vet": "score"},
    questions=218,
    source="https://github.com/yuweihao/MM-Vet",
    data="mm-vet.json",
    media="images: {imagename}",
    load=_load,
    rule=_exact_match,
    rule_name="right answer contained, word for word",
    metrics=_metrics,
    judge=MM_VET,
    judged_metrics=_judged_metrics,
    judged_unit="%",
    max_new_tokens=1024,
    lmms_tasks=("mmvet",),
    lmms_metrics=("gpt_eval_score",),
    lmms_judge="*",
    lmms_scale=1,
    checked="judge's prompt word for word, replies read as its evaluator does; a local judge answers in the tests",
)
