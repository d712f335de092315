"""Rows as the published files have them, with their traps."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linvt.annotations import FORMATS, Annotation, RowProblem, Turn, detect_format, read_annotations, read_rows

WEBVID = (
    "videoid,contentUrl,duration,page_dir,name\n"
    "21179416,https://example.org/21179416.mp4,PT00H00M11S,006001_006050,Aerial shot winter forest\n"
    '5629184,https://example.org/5629184.mp4,PT00H00M29S,071501_071550,"Senior couple, hugging, says ""hello"""\n'
    "3,https://example.org/3.mp4,PT00H00M29S,,No page\n"
    '1066697806,https://example.org/1066697806.mp4,PT00H00M09S,019001_019050,"Two\nlines"\n'
    "4,https://example.org/4.mp4,PT00H00M29S,nan,No page either\n"
)


def write_text(path, text):
    path.write_bytes(text.encode())
    return path


def write_json(path, rows):
    return write_text(path, json.dumps(rows))


def read_all(path, format):
    rows = [row for _, row in read_rows(path, format)]
    return [row for row in rows if isinstance(row, Annotation)], [row for row in rows if isinstance(row, RowProblem)]


def one(media_id, question, answer, family=None, choices=None):
    turn = Turn(question=question, answer=answer, family=family, choices=choices)
    return Annotation(media_id=media_id, kind="video", turns=(turn,))


def test_webvid(tmp_path):
    path = write_text(tmp_path / "results_2M_val.csv", WEBVID)
    assert detect_format(path) == "webvid"
    annotations, problems = read_all(path, "webvid")
    assert [(a.media_id, a.caption, a.turns) for a in annotations] == [
        ("006001_006050/21179416.mp4", "Aerial shot winter forest", ()),
        ("071501_071550/5629184.mp4", 'Senior couple, hugging, says "hello"', ()),
        ("019001_019050/1066697806.mp4", "Two\nlines", ()),
    ]
    assert [(problem.line, problem.row, problem.is_broken) for problem in problems] == [(4, 3, False), (7, 5, False)]
    assert len(list(read_annotations([path]))) == 3
    with_index = WEBVID.replace("name\n", "name,page_idx\n", 1).replace("forest\n", "forest,7\n")
    assert next(read_annotations([write_text(path, with_index)], "webvid")).caption == "Aerial shot winter forest"


def test_sharegptvideo_is_llava_whose_videos_are_folders(tmp_path):
    row = {
        "id": "v_XNTy5ZTMqVU-Scene-011_1",
        "video": "v_XNTy5ZTMqVU-Scene-011",
        "conversations": [{"from": "human", "value": "<video>\nWhere?"}, {"from": "gpt", "value": "In a newsroom."}],
    }
    path = write_text(tmp_path / "video_240k.jsonl", json.dumps(row) + "\n" + json.dumps(row))
    assert detect_format(path) == "sharegptvideo"
    assert read_all(path, "sharegptvideo") == ([one("v_XNTy5ZTMqVU-Scene-011", "Where?", "In a newsroom.")] * 2, [])
    [caption, _] = read_all(path, "sharegptvideo-caption")[0]
    assert (caption.caption, caption.turns) == ("In a newsroom.", ())
    path = write_text(path, json.dumps(row | {"video": "academic/a.mp4"}))
    assert detect_format(path) == "llava"


def test_video_chatgpt(tmp_path):
    rows = [
        {"q": "What is it about? ", "a": " A harbour.", "video_id": "v_k_ZXmr8pmrs"},
        {"q": "Who?", "a": "A man.", "video_id": "-vY2uUmv6Dk"},
        {"q": "Who?", "a": "", "video_id": "v_a"},
    ]
    path = write_json(tmp_path / "VideoInstruct100K.json", rows)
    assert detect_format(path) == "video-chatgpt"
    annotations, [problem] = read_all(path, "video-chatgpt")
    assert annotations == [
        one("v_k_ZXmr8pmrs.*", "What is it about?", "A harbour."),
        one("v_-vY2uUmv6Dk.*", "Who?", "A man."),
    ]
    assert str(problem) == f"{path}:1: an empty answer to 'Who?' (row 3)"
    with pytest.raises(ValueError, match=r"VideoInstruct100K\.json:1: an empty answer to 'Who\?' \(row 3\)"):
        list(read_annotations([path]))


def test_videochat2_it(tmp_path):
    rows = [
        {"video": "1/a.mp4", "QA": [{"i": "Describe the video.", "q": "", "a": "A dog runs."}]},
        {"video": "b.mp4", "QA": [{"i": "Be brief.", "q": "Who?", "a": "A man."}, {"i": "no", "q": "Why?", "a": "x"}]},
        {"video": "c.mp4", "QA": [{"q": "Who?", "a": "A man."}], "start": 3.5, "end": "9"},
        {"video": "c.mp4", "QA": [{"q": "Who?", "a": "A man."}], "start": 3.5},
        {"image": "d.jpg", "QA": [{"i": "", "q": "What?", "a": "A cat."}]},
        {"video": "e.mp4", "QA": [{"i": "", "q": "", "a": "A cat."}]},
        {"video": "e.mp4", "QA": [{"q": "Who?", "a": "A man."}], "start": 9, "end": 3},
        {"video": "e.mp4", "QA": []},
    ]
    path = write_json(tmp_path / "train.json", rows)
    assert detect_format(path) == "videochat2-it"
    annotations, problems = read_all(path, "videochat2-it")
    assert annotations[0] == one("1/a.mp4", "Describe the video.", "A dog runs.")
    assert [turn.question for turn in annotations[1].turns] == ["Be brief.\nWho?", "Be brief.\nWhy?"]
    assert [a.section_s for a in annotations] == [None, None, (3.5, 9.0), None]
    assert [(problem.row, problem.is_broken) for problem in problems] == [(5, False), (6, True), (7, True), (8, True)]


def _activitynet(folder, questions, answers, name="val"):
    write_json(folder / f"{name}_a.json", answers)
    return write_json(folder / f"{name}_q.json", questions)


def _question(number, question="is it", video="1QIUV7WYKXg"):
    return {"video_name": video, "question": question, "question_id": f"v_{video}_{number}"}


def _answer(number, answer="no", type=3, video="1QIUV7WYKXg"):
    return {"answer": answer, "type": type, "question_id": f"v_{video}_{number}"}


def test_activitynet_qa_is_joined_by_id_not_by_order(tmp_path):
    path = _activitynet(
        tmp_path,
        [_question(1, "is it red"), _question(2, "how many"), _question(1, "who", video="-Y")],
        [_answer(1, "a man", 8, video="-Y"), _answer(2, "2", 7), _answer(1, "yes")],
    )
    expected = [
        one("v_1QIUV7WYKXg.*", "is it red", "yes", "yes/no"),
        one("v_1QIUV7WYKXg.*", "how many", "2", "number"),
        one("v_-Y.*", "who", "a man", "other"),
    ]
    assert list(read_annotations([path])) == expected
    # The answers may be named too, as a shell's *.json does.
    assert list(read_annotations([tmp_path / "val_a.json", path], "auto")) == expected
    with pytest.raises(ValueError, match=r"val_a\.json: of ActivityNet-QA name the questions' file"):
        list(read_annotations([tmp_path / "val_a.json"]))


def test_activitynet_qa_tells_of_whatever_has_no_partner(tmp_path):
    path = _activitynet(
        tmp_path, [_question(1), _question(2)], [_answer(1), _answer(3), _answer(1, "yes"), _answer(4, type=9), {}]
    )
    annotations, problems = read_all(path, "activitynet-qa")
    assert [a.turns[0].answer for a in annotations] == ["no"]
    assert [(problem.file[-10:], problem.row, problem.is_broken) for problem in problems] == [
        ("val_a.json", 3, True),
        ("val_a.json", 5, True),
        ("val_q.json", 2, True),
        ("val_a.json", 2, True),
        ("val_a.json", 4, True),
    ]
    (tmp_path / "val_a.json").unlink()
    with pytest.raises(ValueError, match=r"its answers are not beside it; expected .*val_a\.json"):
        list(read_annotations([path]))


MSVD_JSON = [
    {"id": 0, "video_id": 1, "question": "what is chewing on a nut?", "answer": "chipmunk"},
    {"id": 1, "video_id": 2, "question": "is it?", "answer": "null"},
]


def test_msvd_qa_in_both_forms(tmp_path):
    path = write_json(tmp_path / "test_qa.json", MSVD_JSON)
    expected = [
        one("vid1.avi", "what is chewing on a nut?", "chipmunk", "what"),
        one("vid2.avi", "is it?", "null", "other"),
    ]
    assert list(read_annotations([path])) == expected
    rows = "1,480,360,what is chewing on a nut?,chipmunk,0\n2,4,3,is it?,null,1\n"
    path = write_text(tmp_path / "test.csv", "video,width,height,question,answer,qid\n" + rows)
    assert detect_format(path) == "msvd-qa"
    assert list(read_annotations([path])) == expected


def test_msvd_qa_takes_the_clips_own_names_where_the_mapping_lies_beside(tmp_path):
    path = write_json(tmp_path / "test_qa.json", MSVD_JSON)
    (tmp_path / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1\n")
    annotations, [problem] = read_all(path, "msvd-qa")
    assert annotations[0].media_id == "-4wsuPCjDBc_5_15.avi"
    assert "does not name vid2" in problem.reason


def test_msrvtt_qa_in_both_forms(tmp_path):
    rows = [{"id": 158581, "video_id": 6513, "question": "who sings", "answer": "girl", "category_id": 14}]
    expected = [one("video6513.mp4", "who sings", "girl", "who")]
    assert list(read_annotations([write_json(tmp_path / "val_qa.json", rows)])) == expected
    path = write_text(tmp_path / "val.csv", "video,question,answer,qid,type\n6513,who sings,girl,158581,14\n")
    assert list(read_annotations([path])) == expected


def test_what_only_a_name_can_tell(tmp_path):
    text = "video,question,answer,qid\n6513,who sings,girl,158581\n"
    assert detect_format(write_text(tmp_path / "MSRVTT_val.csv", text)) == "msrvtt-qa"
    assert detect_format(write_text(tmp_path / "msvd_val.csv", text)) == "msvd-qa"
    with pytest.raises(ValueError, match=r"it may be msvd-qa or msrvtt-qa; give --format"):
        detect_format(write_text(tmp_path / "val.csv", text))
    # TGIF-QA as HQGA has it: MSVD's columns, other videos.
    with pytest.raises(ValueError, match="none of the known ones"):
        detect_format(write_text(tmp_path / "test.csv", "video,width,height,question,answer,qid\n1,2,3,a,b,FRAMEQA1\n"))


def test_tgif_qa_in_its_four_forms(tmp_path):
    frame = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\r\n" + (
        "tumblr_a\thow many, dogs ?\ttwo\t1\tFRAMEQA3\t25889\ttwo dogs .\r\n"
    )
    path = write_text(tmp_path / "Test_frameqa_question.csv", frame)
    assert detect_format(path) == "tgif-qa"
    assert list(read_annotations([path])) == [one("tumblr_a.gif", "how many, dogs ?", "two", "number")]
    for key, video in (("COUNT2", "16"), ("16", "COUNT2")):
        text = f"gif_name\tquestion\tanswer\tvid_id\tkey\ntumblr_b\tHow often ?\t5\t{key}\t{video}\n"
        assert list(read_annotations([write_text(path, text)])) == [one("tumblr_b.gif", "How often ?", "5", "count")]
    header = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\n"
    options = "\t".join(["flick", "do gymnastic", "chew food", '"respond ""no"" "', "pat"])
    for key, family in (("ACTION1", "action"), ("TRANS4", "transition")):
        text = header + f"tumblr_c\tWhat ?\t{options}\t3\t{key}\t5\ntumblr_c\tWhat ?\t{options}\t5\t{key}\t5\n"
        annotations, [problem] = read_all(write_text(path, text), "tgif-qa")
        choices = ("flick", "do gymnastic", "chew food", 'respond "no"', "pat")
        assert annotations == [one("tumblr_c.gif", "What ?", 'respond "no"', family, choices)]
        assert "'answer' must be the number of an option, 0 to 4, got '5'" in problem.reason


NEXT_HEADER = "video,frame_count,width,height,question,answer,qid,type"


def test_nextqa_multiple_choice_and_open_ended(tmp_path):
    text = f"{NEXT_HEADER},a0,a1,a2,a3,a4\n4010069381,369,640,480,how,2,6,CH,roll,tap,strum,roll,pat\n"
    path = write_text(tmp_path / "val.csv", text)
    assert detect_format(path) == "nextqa"
    choices = ("roll", "tap", "strum", "roll", "pat")
    assert list(read_annotations([path])) == [one("4010069381.mp4", "how", "strum", "CH", choices)]
    (tmp_path / "map_vid_vidorID.json").write_text('{"4010069381": "1164/4010069381"}')
    assert list(read_annotations([path])) == [one("1164/4010069381.mp4", "how", "strum", "CH", choices)]
    text = f"{NEXT_HEADER}\n4010069381,369,640,480,is it,yes,1,DB\n7,369,640,480,is it,yes,1,DB\n"
    annotations, [problem] = read_all(write_text(path, text), "nextqa")
    assert annotations == [one("1164/4010069381.mp4", "is it", "yes", "DB")]
    assert "does not name the video '7'" in problem.reason


def test_every_published_format_is_told_by_its_rows(tmp_path):
    """And by no more than one: the files above are told apart by `detect_format`, which refuses what two accept."""
    rows = {
        "linvt": {"media": "a.mp4", "caption": "x"},
        "llava": {"video": "a.mp4", "conversations": []},
        "sharegptvideo": {"video": "a", "conversations": []},
        "video-chatgpt": {"q": "", "a": "", "video_id": ""},
        "videochat2-it": {"video": "a.mp4", "QA": []},
        "activitynet-qa": _question(1),
        "msvd-qa": MSVD_JSON[0],
        "msrvtt-qa": MSVD_JSON[0] | {"category_id": 1},
    }
    tables = {
        "webvid": WEBVID,
        "tgif-qa": "gif_name\tquestion\tanswer\na\tb\tc\n",
        "nextqa": f"{NEXT_HEADER}\n1,2,3,4,5,6,7,8\n",
    }
    assert {*rows, *tables, "llava-caption", "sharegptvideo-caption"} == set(FORMATS)
    for format, row in rows.items():
        assert detect_format(write_json(tmp_path / "a.json", [row])) == format
        assert detect_format(write_text(tmp_path / "a.jsonl", "\ufeff" + json.dumps(row) + "\n")) == format
    for format, text in tables.items():
        assert detect_format(write_text(tmp_path / "a.csv", "\ufeff" + text)) == format
    for text in ("", "[]", '{"a": 1}', "[1, 2]", "a,b\n1,2\n", "\x00\xff", "{"):
        with pytest.raises(ValueError, match=r"a\.txt: its format cannot be told"):
            detect_format(write_text(tmp_path / "a.txt", text))


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"activitynet-qa"}))
@pytest.mark.parametrize("text", ['{"a": 1}', "[{}, 3, null]", "a,b\n1,2\n", "[[", '{"video": 3, "QA": 4}', "\udcff"])
def test_foreign_rows_are_problems_and_nothing_else(tmp_path, format, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    annotations, problems = read_all(path, format)
    assert annotations == []
    assert all(problem.is_broken for problem in problems)
    assert problems


_pieces = st.sampled_from('[]{},:"\\\n\t\r\x00\udcff\ufeffé1') | st.sampled_from(
    ['"video"', '"QA"', '"q"', '"a"', '"media"', '"start"', "9" * 5000, "null", "NaN", "Infinity", "video,question"]
)


@settings(deadline=None)
@given(pieces=st.lists(_pieces, max_size=30))
def test_whatever_is_in_a_file_nothing_but_problems_comes_of_it(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("any") / "a"
    path.write_bytes("".join(pieces).encode("utf-8", "surrogateescape"))
    for format in sorted(set(FORMATS) - {"activitynet-qa"}):
        assert read_all(path, format)[0] == []
