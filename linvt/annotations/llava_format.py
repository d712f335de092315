"""LLaVA-style conversations: the form of LLaVA-Instruct and LLaVA-Video-178K files, and of ShareGPTVideo's.

    {"id": "…", "video": "academic/abc.mp4",
     "conversations": [{"from": "human", "value": "<video>\\nWhat happens?"}, {"from": "gpt", "value": "…"}, …]}

A row is one conversation: each question after the first follows the answer before it. System messages are not read: an
image-LLM's chat template brings its own. An image row has "image" for "video". The placeholder of the medium is cut
from the questions: where visual tokens go is the backbone's business. A file of captions is a file of one-turn
conversations whose answers are the captions; nothing in a row says so, hence the formats "…-caption".

ShareGPTVideo (https://huggingface.co/datasets/ShareGPTVideo/train_video_and_instruction) has the same rows, but its
"video" is a folder of frames (`c01_0001.jpeg` …, two a second), which extraction reads as a video.
"""

from pathlib import PurePosixPath

from linvt.annotations.fields import take_list, take_text
from linvt.annotations.format import Format, RawRow, has, reader
from linvt.annotations.rows import Annotation, MediaKind, Turn

_PLACEHOLDERS = ("<video>", "<image>")
_QUESTION_ROLES = ("human", "user")
_ANSWER_ROLES = ("gpt", "assistant")


def parse_row(row: RawRow) -> Annotation:
    """One conversation as an Annotation whose turns follow each other; ValueError says what is wrong."""
    media_id, kind = _parse_media(row)
    return Annotation(media_id=media_id, kind=kind, turns=_parse_turns(row))


def parse_caption_row(row: RawRow) -> Annotation:
    """The same, for a file of captions: the answer of the row's one turn is the caption."""
    media_id, kind = _parse_media(row)
    turns = _parse_turns(row)
    if len(turns) != 1:
        raise ValueError(f"a caption row holds one question and one answer, got {len(turns)}; use the format 'llava'")
    return Annotation(media_id=media_id, kind=kind, caption=turns[0].answer)


def _parse_media(row: RawRow) -> tuple[str, MediaKind]:
    if ("video" in row) == ("image" in row):
        raise ValueError(f"a row names one medium under 'video' or 'image'; this one has the keys {sorted(row)}")
    return (take_text(row, "video"), "video") if "video" in row else (take_text(row, "image"), "image")


def _parse_turns(row: RawRow) -> tuple[Turn, ...]:
    messages = [message for message in take_list(row, "conversations") if message.get("from") != "system"]
    roles = [message.get("from") for message in messages]
    if len(messages) % 2 or any(role not in (_QUESTION_ROLES, _ANSWER_ROLES)[i % 2] for i, role in enumerate(roles)):
        raise ValueError(f"'conversations' must alternate between human and gpt, got {roles}")
    return tuple(
        Turn(
            question=_without_placeholder(take_text(question, "value")),
            answer=take_text(answer, "value").strip(),
            follows=i > 0,
        )
        for i, (question, answer) in enumerate(zip(messages[::2], messages[1::2], strict=True))
    )


def _without_placeholder(question: str) -> str:
    for placeholder in _PLACEHOLDERS:
        question = question.replace(placeholder, "")
    return question.strip()


def _is_frame_folder(row: RawRow) -> bool:
    return isinstance(row.get("video"), str) and not PurePosixPath(row["video"]).suffix


def _never(row: RawRow) -> bool:
    return False


_is_conversation = has("conversations")

LLAVA = Format(
    recognises=lambda row: _is_conversation(row) and not _is_frame_folder(row),
    read=reader(parse_row),
)
SHAREGPTVIDEO = Format(
    recognises=lambda row: _is_conversation(row) and _is_frame_folder(row),
    read=reader(parse_row),
)
CAPTIONS = Format(recognises=_never, read=reader(parse_caption_row))
