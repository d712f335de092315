"""LinVT's own format: one JSON object a row.

    {"media": "videos/000001.mp4", "kind": "video", "caption": "A red ball …",
     "qa": [{"question": "…", "answer": "…", "family": "order", "choices": ["…", "…"]}]}

`kind` defaults to "video"; `caption`, `qa`, `family` and `choices` may be left out, but not both caption and qa.
"""

from typing import Any

from linvt.annotations.fields import take_list, take_text, take_text_or_none
from linvt.annotations.rows import Annotation, Turn


def parse_row(row: dict[str, Any]) -> Annotation:
    """One row as an Annotation; ValueError says which field is wrong."""
    return Annotation(
        media_id=take_text(row, "media"),
        kind=row.get("kind", "video"),
        caption=take_text_or_none(row, "caption"),
        turns=tuple(_parse_turn(turn) for turn in take_list(row, "qa")),
    )


def _parse_turn(turn: dict[str, Any]) -> Turn:
    return Turn(
        question=take_text(turn, "question"),
        answer=take_text(turn, "answer"),
        family=take_text_or_none(turn, "family"),
        choices=_parse_choices(turn.get("choices")),
    )


def _parse_choices(choices: Any) -> tuple[str, ...] | None:
    if choices is None:
        return None
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"'choices' must be a list of strings, got {choices!r}")
    return tuple(choices)
