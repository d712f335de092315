"""The rows of a benchmark: one question about one video or image, and the prompt that asks it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from linvt.annotations import Annotation


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question with its reference answer."""

    question_id: str
    media_id: str
    kind: Literal["video", "image"]
    question: str
    answer: str
    family: str
    choices: tuple[str, ...] | None


def questions_of(annotations: Iterable[Annotation], *, media_prefix: str = "") -> list[Question]:
    """Every question of every annotation, in order; ids are `<media id>#<running number on that media>`."""
    asked: Counter[str] = Counter()
    questions = []
    for annotation in annotations:
        media_id = media_prefix + annotation.media_id
        if annotation.section_s is not None:
            raise ValueError(f"{media_id}: asked about a section of it, {annotation.section_s} s; only whole media are")
        for turn in annotation.turns:
            questions.append(
                Question(
                    question_id=f"{media_id}#{asked[media_id]}",
                    media_id=media_id,
                    kind=annotation.kind,
                    question=turn.question,
                    answer=turn.answer,
                    family=turn.family or "all",
                    choices=turn.choices or None,
                )
            )
            asked[media_id] += 1
    return questions


def prompt_of(question: Question, *, show_choices: bool) -> str:
    """The text that every method sends, whatever media goes with it."""
    if not show_choices or not question.choices:
        return question.question
    options = [f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(question.choices)]
    return "\n".join([question.question, *options, "Answer with the letter of the best option."])


def chance_accuracy(questions: Iterable[Question]) -> float | None:
    """The mean of 1/|choices|: what guessing among the options would score. None if no question lists any."""
    chances = [1 / len(question.choices) for question in questions if question.choices]
    return sum(chances) / len(chances) if chances else None
