"""TGIF-QA (https://github.com/YunseokJANG/tgif-qa): four tasks, tab-separated in spite of the name .csv.

    FrameQA              gif_name question answer type vid_id key description
    Count                gif_name question answer vid_id key
    Action, Transition   gif_name question a1 a2 a3 a4 a5 answer vid_id key

In the last two, `answer` is the number of the right option, from 0. Rows have `key` and `vid_id` the other way round
than the header says: `… COUNT2 16`. Files are `{gif_name}.gif`.
"""

from linvt.annotations.fields import take_choices, take_id, take_text
from linvt.annotations.format import Format, RawRow, has, reader
from linvt.annotations.rows import Annotation, Turn

_OPTIONS = ("a1", "a2", "a3", "a4", "a5")
_FRAME_QA_TYPES = {"0": "object", "1": "number", "2": "color", "3": "location"}  # dataset/README.md there
_TASKS = {"ACTION": "action", "TRANS": "transition", "COUNT": "count"}


def parse_row(row: RawRow) -> Annotation:
    choices, answer = (None, take_id(row, "answer"))
    if "a1" in row:
        choices, answer = take_choices(row, _OPTIONS, "answer")
    turn = Turn(question=take_text(row, "question").strip(), answer=answer, family=_family(row), choices=choices)
    return Annotation(media_id=f"{take_id(row, 'gif_name')}.gif", kind="video", turns=(turn,))


def _family(row: RawRow) -> str:
    """FrameQA's four types; the other tasks are told by their keys: ACTION12, COUNT3, TRANS24."""
    if "type" in row:
        number = take_id(row, "type")
        if number not in _FRAME_QA_TYPES:
            raise ValueError(f"'type' must be 0 to {len(_FRAME_QA_TYPES) - 1}, got {number!r}")
        return _FRAME_QA_TYPES[number]
    keys = [take_id(row, name) for name in ("vid_id", "key")]
    for prefix, family in _TASKS.items():
        if any(key.startswith(prefix) for key in keys):
            return family
    raise ValueError(f"'vid_id' or 'key' must begin with one of {sorted(_TASKS)}, got {keys}")


TGIF_QA = Format(recognises=has("gif_name", "question", "answer"), read=reader(parse_row))
