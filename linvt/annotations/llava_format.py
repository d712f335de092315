"""LLaVA-style conversations: the form of LLaVA-Instruct, LLaVA-Video-178K and ShareGPTVideo files.

    {"id": "…", "video": "academic/abc.mp4",
     "conversations": [{"from": "human", "value": "<video>\\nWhat happens?"}, {"from": "gpt", "value": "…"}, …]}

An image row has "image" for "video". The placeholder of the medium is cut from the questions: where visual tokens go is
the backbone's business. A file of captions is a file of one-turn conversations whose answers are the captions; nothing
in a row says so, hence the format "llava-caption" beside "llava".
"""

from typing import Any

from linvt.annotations.fields import take_list, take_text
from linvt.annotations.rows import Annotation, MediaKind, Turn

_PLACEHOLDERS = ("<video>", "<image>")
_QUESTION_ROLES = ("human", "user")
_ANSWER_ROLES = ("gpt", "assistant")


def parse_row(row: dict[str, Any]) -> Annotation:
    """One conversation as an Annotation with one Turn for each question and answer; ValueError says what is wrong."""
    media_id, kind = _parse_media(row)
    return Annotation(media_id=media_id, kind=kind, turns=_parse_turns(row))


def parse_caption_row(row: dict[str, Any]) -> Annotation:
    """The same, for a file of captions: the answer of the row's one turn is the caption."""
    media_id, kind = _parse_media(row)
    turns = _parse_turns(row)
    if len(turns) != 1:
        raise ValueError(f"a caption row holds one question and one answer, got {len(turns)}; use the format 'llava'")
    return Annotation(media_id=media_id, kind=kind, caption=turns[0].answer)


def _parse_media(row: dict[str, Any]) -> tuple[str, MediaKind]:
    if ("video" in row) == ("image" in row):
        raise ValueError(f"a row names one medium under 'video' or 'image'; this one has the keys {sorted(row)}")
    return (take_text(row, "video"), "video") if "video" in row else (take_text(row, "image"), "image")


def _parse_turns(row: dict[str, Any]) -> tuple[Turn, ...]:
    messages = [message for message in take_list(row, "conversations") if message.get("from") != "system"]
    roles = [message.get("from") for message in messages]
    if len(messages) % 2 or any(role not in (_QUESTION_ROLES, _ANSWER_ROLES)[i % 2] for i, role in enumerate(roles)):
        raise ValueError(f"'conversations' must alternate between human and gpt, got {roles}")
    return tuple(
        Turn(question=_without_placeholder(take_text(question, "value")), answer=take_text(answer, "value").strip())
        for question, answer in zip(messages[::2], messages[1::2], strict=True)
    )


def _without_placeholder(question: str) -> str:
    for placeholder in _PLACEHOLDERS:
        question = question.replace(placeholder, "")
    return question.strip()
