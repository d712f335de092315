"""From an answer, and a judge's verdict if there is one, to a scored row."""

from typing import Any

from linvt.evaluation.entry import MISSING, UNLABELLED, Benchmark, Item, Medium, Scored, Verdict
from linvt.evaluation.judge import Judgement

EMPTY = "empty answer"


def scored(
    benchmark: Benchmark, item: Item, prediction: str | None, judgement: Judgement | None, *, is_judged: bool
) -> Scored:
    """The row of an answer. With `is_judged` and no judgement the answer is empty, which is wrong without asking."""
    wrong = Verdict(score=0.0, correct=False)
    if not item.answers:
        verdict, by = wrong, UNLABELLED
    elif prediction is None:
        verdict, by = wrong, MISSING
    elif not is_judged:
        verdict, by = benchmark.rule(item, prediction), benchmark.rule_name
    elif judgement is None:
        verdict, by = wrong, EMPTY
    else:
        verdict, by = Verdict(score=judgement.score, correct=judgement.correct), "judge"
    return Scored(
        item_id=item.item_id,
        media=tuple(medium.path for medium in item.media),
        groups=item.groups,
        question=item.question,
        answers=item.answers,
        prediction=prediction,
        score=verdict.score,
        correct=verdict.correct,
        by=by,
    )


def item_from_json(fields: dict[str, Any]) -> Item:
    """The item whose `asdict` went through JSON."""
    media = tuple(Medium(**medium) for medium in fields["media"])
    return Item(**fields | {"media": media, "answers": tuple(fields["answers"]), "options": tuple(fields["options"])})
