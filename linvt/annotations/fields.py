"""Checked access to the fields of a row: what is missing or of the wrong type is said, never guessed."""

from collections.abc import Mapping, Sequence
from typing import Any


def take_text(row: Mapping[str, Any], name: str) -> str:
    """The string under `name`; ValueError if it is missing or something else."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    if name not in row:
        raise ValueError(f"no field {name!r}; this row has {sorted(row)}")
    raise ValueError(f"{name!r} must be a string, got {shorten(value)}")


def take_text_or_none(row: Mapping[str, Any], name: str) -> str | None:
    """The string under `name`, None where the field is missing or null."""
    return None if row.get(name) is None else take_text(row, name)


def take_id(row: Mapping[str, Any], name: str) -> str:
    """The name or number under `name`, as text without blanks around it; ValueError if it is missing or empty."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = take_text(row, name).strip()
    if not text:
        raise ValueError(f"{name!r} is empty")
    return text


def take_list(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects under `name`, empty where the field is missing or null."""
    items = row.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{name!r} must be a list of objects, got {shorten(items)}")
    return items


def take_choices(row: Mapping[str, Any], names: Sequence[str], answer: str) -> tuple[tuple[str, ...], str]:
    """The options under `names`, and the one whose number, from 0, is under `answer`."""
    choices = tuple(take_text(row, name).strip() for name in names)
    number = take_id(row, answer)
    if not (number.isascii() and number.isdigit() and int(number) < len(choices)):
        raise ValueError(f"{answer!r} must be the number of an option, 0 to {len(choices) - 1}, got {number!r}")
    return choices, choices[int(number)]


def take_seconds(row: Mapping[str, Any], name: str) -> float:
    """The number under `name`, also one written as text."""
    try:
        return float(row[name])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name!r} must be a number of seconds, got {shorten(row.get(name))}") from None


def question_word(question: str) -> str:
    """Which of the words by which MSVD-QA's and MSRVTT-QA's scores are told apart a question begins with."""
    first = question.split(maxsplit=1)[0].casefold() if question.strip() else ""
    return first if first in ("what", "who", "how", "when", "where") else "other"


def shorten(value: Any) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
