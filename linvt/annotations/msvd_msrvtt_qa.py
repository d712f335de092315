"""MSVD-QA and MSRVTT-QA, in the original JSON lists (https://github.com/xudejing/video-question-answering) and in the
csv files of HQGA (https://github.com/doc-doc/HQGA).

    {"id": 0, "video_id": 1, "question": "what is chewing on a nut?", "answer": "chipmunk"}     MSRVTT: + "category_id"
    video,width,height,question,answer,qid                                                      MSVD of HQGA
    video,question,answer,qid,type                                                              MSRVTT of HQGA

Files are `vid{n}.avi` (MSVD) and `video{n}.mp4` (MSR-VTT). MSVD's own clips are called otherwise; where
`youtube_mapping.txt`, which comes with MSVD-QA, lies beside a file, its names are used: `<name> vid{n}` a line.
"""

from collections.abc import Callable
from pathlib import Path

from linvt.annotations.fields import question_word, take_id, take_text
from linvt.annotations.format import Format, RawRow, Rows, has, parsed_rows, reader
from linvt.annotations.rows import Annotation, Turn

MAPPING = "youtube_mapping.txt"


def mapping_beside(path: Path) -> tuple[Path, ...]:
    return (path.with_name(MAPPING),)


def read_msvd(path: Path) -> Rows:
    mapping, names = path.with_name(MAPPING), {}
    if mapping.is_file():
        pairs = (line.split() for line in mapping.read_text(encoding="utf-8").splitlines() if line.strip())
        names = {number: name for name, number in pairs}

    def media_id(number: str) -> str:
        if names and f"vid{number}" not in names:
            raise ValueError(f"{MAPPING} does not name vid{number}")
        return f"{names.get(f'vid{number}', f'vid{number}')}.avi"

    return parsed_rows(path, _parser(media_id))


def _parser(media_id: Callable[[str], str]) -> Callable[[RawRow], Annotation]:
    def parse(row: RawRow) -> Annotation:
        number = take_id(row, "video_id" if "video_id" in row else "video")
        question = take_text(row, "question").strip()
        turn = Turn(question=question, answer=take_id(row, "answer"), family=question_word(question))
        return Annotation(media_id=media_id(number), kind="video", turns=(turn,))

    return parse


_MSVD_JSON = has("id", "video_id", "question", "answer", without=("category_id",))
_MSVD_CSV = has("video", "question", "answer", "qid", without=("type", "frame_count", "a0"))
_MSRVTT_JSON = has("id", "video_id", "question", "answer", "category_id")
_MSRVTT_CSV = has("video", "question", "answer", "qid", without=("width", "frame_count", "a0"))


def _is_numbered(row: RawRow) -> bool:
    """HQGA's files of TGIF-QA have the columns of its MSVD-QA, but name their questions otherwise: FRAMEQA1159."""
    return str(row["qid"]).isdigit()


MSVD_QA = Format(
    recognises=lambda row: _MSVD_JSON(row) or (_MSVD_CSV(row) and _is_numbered(row)),
    read=read_msvd,
    companions=mapping_beside,
)
MSRVTT_QA = Format(
    recognises=lambda row: _MSRVTT_JSON(row) or (_MSRVTT_CSV(row) and _is_numbered(row)),
    read=reader(_parser(lambda number: f"video{number}.mp4")),
)
