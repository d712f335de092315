"""LinVT's own format: one JSON object a row.

    {"media": "videos/000001.mp4", "kind": "video", "caption": "A red ball …", "section_s": [0, 12.5],
     "qa": [{"question": "…", "answer": "…", "family": "order", "choices": ["…", "…"]},
            {"question": "…", "answer": "…", "follows": true}]}

`kind` defaults to "video"; `caption`, `qa`, `section_s`, `family`, `choices` and `follows` may be left out, but not
both caption and qa. `follows` says that a question was asked once the one before it was answered, in one conversation.
"""

from typing import Any

from linvt.annotations.fields import shorten, take_list, take_text, take_text_or_none
from linvt.annotations.format import Format, RawRow, has, reader
from linvt.annotations.rows import Annotation, Turn


def parse_row(row: RawRow) -> Annotation:
    """One row as an Annotation; ValueError says which field is wrong."""
    return Annotation(
        media_id=take_text(row, "media"),
        kind=row.get("kind", "video"),
        caption=take_text_or_none(row, "caption"),
        turns=tuple(_parse_turn(turn) for turn in take_list(row, "qa")),
        section_s=_parse_section(row.get("section_s")),
    )


def to_row(annotation: Annotation) -> dict[str, Any]:
    """The row that `parse_row` reads back as this annotation."""
    row: dict[str, Any] = {"media": annotation.media_id, "kind": annotation.kind}
    if annotation.caption is not None:
        row["caption"] = annotation.caption
    if annotation.section_s is not None:
        row["section_s"] = list(annotation.section_s)
    if annotation.turns:
        row["qa"] = [_turn_to_row(turn) for turn in annotation.turns]
    return row


def _turn_to_row(turn: Turn) -> dict[str, Any]:
    row: dict[str, Any] = {"question": turn.question, "answer": turn.answer}
    if turn.family is not None:
        row["family"] = turn.family
    if turn.choices is not None:
        row["choices"] = list(turn.choices)
    if turn.follows:
        row["follows"] = True
    return row


def _parse_turn(turn: RawRow) -> Turn:
    return Turn(
        question=take_text(turn, "question"),
        answer=take_text(turn, "answer"),
        family=take_text_or_none(turn, "family"),
        choices=_parse_choices(turn.get("choices")),
        follows=_parse_follows(turn.get("follows")),
    )


def _parse_follows(follows: Any) -> bool:
    if follows not in (None, True, False):
        raise ValueError(f"'follows' must be true or false, got {shorten(follows)}")
    return bool(follows)


def _parse_choices(choices: Any) -> tuple[str, ...] | None:
    if choices is None:
        return None
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"'choices' must be a list of strings, got {shorten(choices)}")
    return tuple(choices)


def _parse_section(section: Any) -> tuple[float, float] | None:
    if section is None:
        return None
    if not isinstance(section, list) or len(section) != 2 or not all(type(end) in (int, float) for end in section):
        raise ValueError(f"'section_s' must be [start, end] in seconds, got {shorten(section)}")
    return float(section[0]), float(section[1])


LINVT = Format(recognises=has("media"), read=reader(parse_row))
