"""Multiple choice: options with letters, and the rule that an answer is right if it names the right letter."""

from collections.abc import Callable, Sequence
from typing import Any

from linvt.evaluation.entry import Item, Rule, Scored, Verdict
from linvt.evaluation.estimates import Estimate, accuracy

ASK_FOR_LETTER = "\nAnswer with the option's letter from the given choices directly."


def letter(number: int) -> str:
    """0 is A."""
    return chr(ord("A") + number)


def lettered(options: Sequence[str], form: str = "{}. {}") -> list[str]:
    """ "A. red", "B. blue"."""
    return [form.format(letter(i), option) for i, option in enumerate(options)]


def verdict(correct: bool) -> Verdict:
    return Verdict(score=float(correct), correct=correct)


def by_letter(read: Callable[[str], str | None]) -> Rule:
    """Right if `read` finds the letter of the answer; `answers` hold the letter."""
    return lambda item, prediction: verdict(read(prediction) in item.answers)


def accuracy_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"accuracy": accuracy(rows)}


def options_of(item: Item) -> dict[str, str]:
    """Letter to option."""
    return {letter(i): option for i, option in enumerate(item.options)}


def number_of(options: Sequence[str], answer: str, where: str) -> int:
    """Which option the answer is; ValueError if it is none."""
    if answer not in options:
        raise ValueError(f"{where}: the answer {answer!r} is none of its options {list(options)}")
    return options.index(answer)


def take(row: dict[str, Any], where: str, *names: str) -> list[Any]:
    """The fields of a row; ValueError names what is missing."""
    missing = [name for name in names if name not in row]
    if missing:
        raise ValueError(f"{where}: no field {', '.join(map(repr, missing))}; this row has {sorted(row)}")
    return [row[name] for name in names]
