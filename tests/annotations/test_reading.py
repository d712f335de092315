import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linvt.annotations import FORMATS, Annotation, Turn, conversations, read_annotations
from linvt.annotations.linvt_format import to_row

LLAVA_VIDEO = {
    "id": "0",
    "video": "academic/abc.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nWhat happens?"},
        {"from": "gpt", "value": "A dog runs. "},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "On a beach."},
    ],
}


def _write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _read(path, format):
    return list(read_annotations([path], format))


def test_own_format_with_everything_and_with_the_least(tmp_path):
    rows = [
        {
            "media": "videos/1.mp4",
            "kind": "video",
            "caption": "A red ball rolls.",
            "qa": [
                {"question": "What rolls?", "answer": "a ball", "family": "object", "choices": ["a ball", "a cube"]},
                {"question": "Which colour?", "answer": "red"},
            ],
        },
        {"media": "2.mp4", "caption": "Nothing."},
        {"media": "3.png", "kind": "image", "qa": [{"question": "What?", "answer": "a cat"}]},
    ]
    assert _read(_write_lines(tmp_path / "a.jsonl", rows), "linvt") == [
        Annotation(
            media_id="videos/1.mp4",
            kind="video",
            caption="A red ball rolls.",
            turns=(
                Turn(question="What rolls?", answer="a ball", family="object", choices=("a ball", "a cube")),
                Turn(question="Which colour?", answer="red"),
            ),
        ),
        Annotation(media_id="2.mp4", kind="video", caption="Nothing."),
        Annotation(media_id="3.png", kind="image", turns=(Turn(question="What?", answer="a cat"),)),
    ]


def test_llava_conversations(tmp_path):
    image = {
        "image": "coco/1.jpg",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "What is it?\n<image>"},
            {"from": "gpt", "value": "A cat."},
        ],
    }
    assert _read(_write_lines(tmp_path / "a.jsonl", [LLAVA_VIDEO, image]), "llava") == [
        Annotation(
            media_id="academic/abc.mp4",
            kind="video",
            turns=(
                Turn(question="What happens?", answer="A dog runs."),
                Turn(question="Where?", answer="On a beach.", follows=True),
            ),
        ),
        Annotation(media_id="coco/1.jpg", kind="image", turns=(Turn(question="What is it?", answer="A cat."),)),
    ]


def test_llava_captions(tmp_path):
    row = LLAVA_VIDEO | {"conversations": LLAVA_VIDEO["conversations"][:2]}
    (annotation,) = _read(_write_lines(tmp_path / "a.jsonl", [row]), "llava-caption")
    assert (annotation.caption, annotation.turns) == ("A dog runs.", ())
    with pytest.raises(ValueError, match=r"a\.jsonl:1: a caption row holds one question"):
        _read(_write_lines(tmp_path / "a.jsonl", [LLAVA_VIDEO]), "llava-caption")


_text = st.text(min_size=1).filter(lambda text: text.strip())
_turns = st.lists(st.fixed_dictionaries({"question": _text, "answer": _text}), min_size=1, max_size=3)
_rows = st.lists(st.fixed_dictionaries({"media": _text, "caption": _text, "qa": _turns}), min_size=1, max_size=5)


@settings(deadline=None)
@given(rows=_rows, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_an_array_reads_like_lines(tmp_path_factory, rows, indent, ascii_only):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    lines = "\n\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    (folder / "a.jsonl").write_text(lines, encoding="utf-8")
    read = _read(folder / "a.json", "linvt")
    assert read == _read(folder / "a.jsonl", "linvt")
    assert [(a.media_id, a.caption) for a in read] == [(row["media"], row["caption"]) for row in rows]


def test_each_file_may_have_a_format_of_its_own(tmp_path):
    ours = _write_lines(tmp_path / "a.jsonl", [{"media": "1", "caption": "x"}])
    captions = _write_lines(tmp_path / "b.jsonl", [LLAVA_VIDEO | {"conversations": LLAVA_VIDEO["conversations"][:2]}])
    read = list(read_annotations([ours, captions], ["auto", "llava-caption"]))
    assert [annotation.caption for annotation in read] == ["x", "A dog runs."]
    with pytest.raises(ValueError, match="3 annotation formats for 2 files"):
        list(read_annotations([ours, captions], ["auto", "auto", "auto"]))


def test_questions_that_follow_others_survive_our_own_format(tmp_path):
    (read,) = _read(_write_lines(tmp_path / "a.jsonl", [LLAVA_VIDEO]), "llava")
    assert [len(group) for group in conversations(read.turns)] == [2]
    assert _read(_write_lines(tmp_path / "b.jsonl", [to_row(read)]), "linvt") == [read]
    alone = {"media": "1", "qa": [{"question": "q", "answer": "a", "follows": True}]}
    with pytest.raises(ValueError, match=r"c\.jsonl:1: the first question, 'q', has no turn before it"):
        _read(_write_lines(tmp_path / "c.jsonl", [alone]), "linvt")
    alone["qa"][0]["follows"] = "yes"
    with pytest.raises(ValueError, match="'follows' must be true or false, got 'yes'"):
        _read(_write_lines(tmp_path / "d.jsonl", [alone]), "linvt")


def test_files_follow_each_other(tmp_path):
    first = _write_lines(tmp_path / "b.jsonl", [{"media": "1", "caption": "x"}])
    second = _write_lines(tmp_path / "a.jsonl", [{"media": "2", "caption": "y"}])
    assert [a.media_id for a in read_annotations([first, second], "linvt")] == ["1", "2"]


GOOD = '{"media": "1.mp4", "caption": "x"}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"media": "2.mp4", "capt', "not JSON"),
        ("[1, 2]", "must be a JSON object"),
        ('{"caption": "x"}', "no field 'media'"),
        ('{"media": 7, "caption": "x"}', "'media' must be a string, got 7"),
        ('{"media": "2.mp4"}', "neither a caption nor a question"),
        ('{"media": "2.mp4", "caption": " "}', "an empty caption"),
        ('{"media": "2.mp4", "kind": "audio", "caption": "x"}', "kind 'audio'"),
        ('{"media": "2.mp4", "qa": [{"question": "q"}]}', "no field 'answer'"),
        ('{"media": "2.mp4", "qa": [{"question": "q", "answer": ""}]}', "an empty answer to 'q'"),
        ('{"media": "2.mp4", "qa": {"question": "q"}}', "'qa' must be a list of objects"),
        ('{"media": "2.mp4", "qa": [{"question": "q", "answer": "a", "choices": ["b"]}]}', "not among its choices"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path, line, reason):
    path = tmp_path / "broken.jsonl"
    path.write_text(GOOD + "\n" + line + "\n" + GOOD)
    rows = read_annotations([path], "linvt")
    assert next(rows).media_id == "1.mp4"
    with pytest.raises(ValueError, match=rf"broken\.jsonl:3: .*{reason}"):
        next(rows)


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        ([{"from": "gpt", "value": "hello"}], "must alternate"),
        ([{"from": "human", "value": "a"}, {"from": "human", "value": "b"}], "must alternate"),
        ([{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "b"}], "an empty question"),
    ],
)
def test_a_broken_conversation_is_named(tmp_path, conversation, reason):
    path = _write_lines(tmp_path / "a.jsonl", [LLAVA_VIDEO, LLAVA_VIDEO | {"conversations": conversation}])
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{reason}"):
        _read(path, "llava")


def test_a_row_with_two_media_is_refused(tmp_path):
    path = _write_lines(tmp_path / "a.jsonl", [LLAVA_VIDEO | {"image": "1.jpg"}])
    with pytest.raises(ValueError, match=r"a\.jsonl:1: a row names one medium"):
        _read(path, "llava")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[\n{"media": "1", "caption": "x"},\n{"media": 2, "caption": "x"}\n]', 3, "'media' must be a string"),
        ('[\n{"media": "1", "caption": "x"}\n', 3, "not closed"),
        ('[\n{"media": "1", "caption": "x"}\n{"media": "2", "caption": "x"}]', 3, "expected ','"),
        ('[\n{"media": "1", "caption": "x"},\n\n{"media": }]', 4, "not JSON"),
        ("[\n]\n garbage", 3, "not JSON"),
    ],
)
def test_a_broken_array_is_named_by_line(tmp_path, text, line, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json:{line}: .*{reason}"):
        _read(path, "linvt")


def test_unknown_format_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"unknown annotation format 'coco'.*linvt.*llava"):
        read_annotations([], "coco")
    for format in FORMATS:
        with pytest.raises(ValueError, match="no such annotation file"):
            read_annotations([tmp_path / "none.jsonl"], format)
