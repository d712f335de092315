"""NExT-QA (https://github.com/doc-doc/NExT-QA) and its open-ended form (https://github.com/doc-doc/NExT-OE): csv files.

    video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4     answer: the right option's number, from 0
    video,frame_count,width,height,question,answer,qid,type                    answer: text

Videos are VidOR's, `{folder}/{video}.mp4`, where `map_vid_vidorID.json` of the same repository says which folder. Where
it lies beside the csv it is used; else the files are taken to be `{video}.mp4`.
"""

import json
from pathlib import Path

from linvt.annotations.fields import take_choices, take_id, take_text
from linvt.annotations.format import Format, RawRow, Rows, has, parsed_rows
from linvt.annotations.rows import Annotation, Turn

MAP = "map_vid_vidorID.json"
_OPTIONS = ("a0", "a1", "a2", "a3", "a4")


def map_beside(path: Path) -> tuple[Path, ...]:
    return (path.with_name(MAP),)


def read(path: Path) -> Rows:
    """Raises ValueError for a map that is no JSON object of names."""
    (map_path,), places = map_beside(path), None
    if map_path.is_file():
        places = json.loads(map_path.read_text(encoding="utf-8"))
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise ValueError(f"{map_path}: expected one JSON object from video to its place in VidOR")

    def parse(row: RawRow) -> Annotation:
        video = take_id(row, "video")
        if places is not None and video not in places:
            raise ValueError(f"{MAP} does not name the video {video!r}")
        choices, answer = (None, take_text(row, "answer").strip())
        if "a0" in row:
            choices, answer = take_choices(row, _OPTIONS, "answer")
        turn = Turn(
            question=take_text(row, "question").strip(), answer=answer, family=take_id(row, "type"), choices=choices
        )
        place = video if places is None else places[video]
        return Annotation(media_id=f"{place}.mp4", kind="video", turns=(turn,))

    return parsed_rows(path, parse)


NEXTQA = Format(
    recognises=has("video", "frame_count", "question", "answer", "qid", "type"), read=read, companions=map_beside
)
