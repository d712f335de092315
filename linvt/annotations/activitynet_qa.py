"""ActivityNet-QA (https://github.com/MILVLG/activitynet-qa): questions in one JSON list, answers in another.

    test_q.json: {"video_name": "1QIUV7WYKXg", "question": "…", "question_id": "v_1QIUV7WYKXg_3"}
    test_a.json: {"answer": "no", "type": 3, "question_id": "v_1QIUV7WYKXg_3"}

The file to name is `*_q.json`; `*_a.json` is found beside it. They are joined by question_id: nothing promises that
their orders agree. Files are ActivityNet's, `v_{video_name}` with the extension that YouTube gave. The answers, some
tens of thousands, are held in memory.
"""

from pathlib import Path

from linvt.annotations.fields import take_id, take_text
from linvt.annotations.format import Format, RawRow, Rows, has, parsed_rows, raw_rows
from linvt.annotations.rows import ANY_EXTENSION, Annotation, RowProblem, Turn

QUESTIONS, ANSWERS = "_q.json", "_a.json"
# As dataset/README.md of the repository names them.
_TYPES = (
    *("motion", "spatial relationship", "temporal relationship"),
    *("yes/no", "color", "object", "location", "number", "other"),
)


def answers_beside(path: Path) -> tuple[Path, ...]:
    """The answers' file of a questions' file."""
    if not path.name.endswith(QUESTIONS):
        return ()
    return (path.with_name(path.name.removesuffix(QUESTIONS) + ANSWERS),)


def read(path: Path) -> Rows:
    """Raises ValueError for an answers' file, or one whose answers are not beside it."""
    beside = answers_beside(path)
    if not beside:
        raise ValueError(
            f"{path}: of ActivityNet-QA name the questions' file, *{QUESTIONS}; the answers are found by it"
        )
    if not beside[0].is_file():
        raise ValueError(f"{path}: its answers are not beside it; expected {beside[0]}")
    return _joined(path, beside[0])


def _joined(path: Path, answers_path: Path) -> Rows:
    """Questions with their answers; answers that no question asks for are problems of their own file."""
    answers: dict[str, tuple[int, int, RawRow]] = {}
    for number, (line, raw) in enumerate(raw_rows(answers_path), start=1):
        try:
            if isinstance(raw, str):
                raise ValueError(raw)
            question_id = take_id(raw, "question_id")
            if question_id in answers:
                raise ValueError(f"question_id {question_id!r} was answered before, in row {answers[question_id][1]}")
            answers[question_id] = line, number, raw
        except ValueError as error:
            yield line, RowProblem(str(answers_path), line, number, str(error), True)

    asked: set[str] = set()

    def parse(row: RawRow) -> Annotation:
        question_id = take_id(row, "question_id")
        if question_id not in answers:
            raise ValueError(f"no answer in {answers_path.name} has the question_id {question_id!r}")
        asked.add(question_id)
        _, _, answer = answers[question_id]
        turn = Turn(
            question=take_text(row, "question").strip(),
            answer=take_text(answer, "answer").strip(),
            family=_family(answer),
        )
        return Annotation(media_id=f"v_{take_id(row, 'video_name')}{ANY_EXTENSION}", kind="video", turns=(turn,))

    yield from parsed_rows(path, parse)
    for question_id, (line, number, _) in answers.items():
        if question_id not in asked:
            reason = f"no question in {path.name} has the question_id {question_id!r}"
            yield line, RowProblem(str(answers_path), line, number, reason, True)


def _family(answer: RawRow) -> str:
    number = take_id(answer, "type")
    if number not in map(str, range(len(_TYPES))):
        raise ValueError(f"'type' must be 0 to {len(_TYPES) - 1}, got {number!r}")
    return _TYPES[int(number)]


_is_question, _is_answer = has("video_name", "question", "question_id"), has("answer", "type", "question_id")

ACTIVITYNET_QA = Format(
    recognises=lambda row: _is_question(row) or (_is_answer(row) and "question" not in row),
    read=read,
    companions=answers_beside,
)
