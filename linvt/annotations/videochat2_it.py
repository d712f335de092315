"""VideoChat2-IT, the video part (https://huggingface.co/datasets/OpenGVLab/VideoChat2-IT): JSON lists, one a subset.

    {"video": "006701_006750/2234.mp4", "QA": [{"i": "instruction", "q": "question", "a": "answer"}, …],
     "start": 3.5, "end": 9.0}

Of a row's instructions only the first counts, as in the authors' loader, where it goes before the whole conversation.
Ours goes before each of its questions, which are asked one by one. `q` may be empty (captions): then the instruction is
the question. `start` and `end` (seconds), where there are both, say that the row speaks of that section alone.

`video` is relative to a root of its own in every subset. Rows of the image part are left out.
"""

from linvt.annotations.fields import shorten, take_list, take_seconds, take_text, take_text_or_none
from linvt.annotations.format import Format, RawRow, has, reader
from linvt.annotations.rows import Annotation, LeftOut, Turn


def parse_row(row: RawRow) -> Annotation:
    if "video" not in row and "image" in row:
        raise LeftOut("an image; the video part is read alone")
    video, pairs = take_text(row, "video"), take_list(row, "QA")
    if not pairs:
        raise ValueError(f"'QA' must hold a question and its answer, got {shorten(row.get('QA'))}")
    instruction = take_text_or_none(pairs[0], "i") or ""
    has_section = row.get("start") is not None and row.get("end") is not None
    return Annotation(
        media_id=video,
        kind="video",
        turns=tuple(_parse_turn(pair, instruction) for pair in pairs),
        section_s=(take_seconds(row, "start"), take_seconds(row, "end")) if has_section else None,
    )


def _parse_turn(pair: RawRow, instruction: str) -> Turn:
    question = f"{instruction.strip()}\n{take_text(pair, 'q').strip()}".strip()
    return Turn(question=question, answer=take_text(pair, "a").strip())


VIDEOCHAT2_IT = Format(recognises=has("QA"), read=reader(parse_row))
