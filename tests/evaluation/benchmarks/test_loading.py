"""Published layouts are read as they are, and so are real rows; right answers score in full, nonsense nothing."""

import os
import shutil
from pathlib import Path

import pytest

from linvt.evaluation.benchmarks import BENCHMARKS
from linvt.evaluation.benchmarks.video_mme import read_srt
from linvt.evaluation.entry import Item, LoadOptions, Scored
from tests.evaluation.benchmarks.published import WRITERS, write_published
from tests.media import write_video

REAL = Path(os.environ.get("LINVT_SHARED", "")) / "annotations"
needs_real_rows = pytest.mark.skipif(not REAL.is_dir(), reason="needs $LINVT_SHARED/annotations")


def load(name: str, tmp_path: Path) -> list[Item]:
    data = write_published(name, tmp_path / "data")
    return list(BENCHMARKS[name].load(data, LoadOptions(media=tmp_path / "media", num_frames=4)))


def scored(name: str, items: list[Item], said: list[str]) -> list[Scored]:
    rule = BENCHMARKS[name].rule
    verdicts = [rule(item, text) for item, text in zip(items, said, strict=True)]
    return [
        Scored(
            item_id=item.item_id,
            media=tuple(medium.path for medium in item.media),
            groups=item.groups,
            question=item.question,
            answers=item.answers,
            prediction=text,
            score=verdict.score,
            correct=verdict.correct,
            by="rule",
        )
        for item, text, verdict in zip(items, said, verdicts, strict=True)
    ]


EXPECTED = {
    # name: (questions, the last one's media, answers, and what its prompt begins with)
    "msvd-qa": (3, ["vid2.avi"], ("ball",), "what moves?\nAnswer the question"),
    "msrvtt-qa": (2, ["video7011.mp4"], ("two",), "how many men are there?\nAnswer"),
    "activitynet-qa": (2, ["v_1QIUV7WYKXg.*"], ("red",), "What color is the hat?"),
    "tgif-qa": (2, ["tumblr_b.gif"], ("two",), "how many men dance ?\nAnswer"),
    "mvbench": (20, ["perception/videos/action_count.mp4"], ("B",), "Question:What happened?\nOption:\n(A) It fell."),
    "mmbench-video": (2, ["video/abc.mp4"], ("Yes",), "Two\nlines?"),
    "video-mme": (3, ["data/xyz.mp4"], ("A",), "Select the best answer to the following multiple-choice question"),
    "video-mme-subtitles": (3, ["data/xyz.mp4"], ("A",), "Select the best answer"),
    # The right one of three equal options is the one of the published number.
    "nextqa": (2, ["1164/4010069381.mp4"], ("E",), "how many men are there\nA. two\nB. one\nC. three\nD. two\nE. two"),
    "egoschema": (2, ["u2.mp4"], (), "What is c doing in u2?\nA. c 0\n"),
    "videovista": (2, ["merged/Animal/3/Animal.3.clip_0.mp4"], ("A",), "How many?\nA. 1\nB. 2"),
    "tempcompass": (3, ["7.mp4"], ("Caption A: It grows.",), "Which caption matches?\nCaption A: It grows.\nCaption B"),
    "mlvu": (8, ["7_topic_reasoning/6.mp4"], ("B",), "Question: What?\nOptions:\n(A) a\n(B) b"),
    "longvideobench": (2, ["videos/86.mp4"], ("A",), "What?\nA. a\nB. b\nC. c\nAnswer with"),
    "mmmu": (2, ["validation_Math_3_1.png"], ("24", "twenty-four"), "How long is <image 1>?\n\nAnswer"),
    "docvqa": (2, ["documents/xnbl0037_1.png"], ("x",), "what is the date?\nAnswer"),
    "hallusionbench": (5, ["VD/math/0_1.png"], ("yes", "It is Switzerland."), "Is it Switzerland?"),
    "ai2d": (2, ["ai2d_00001.png"], ("A",), "What is it?\nA. sun\nB. moon\nAnswer"),
    "mm-vet": (2, ["v1_1.png"], ("a car<OR>a van",), "What is it?"),
    "textvqa": (1, ["train_images/003a8ae2ef43b901.jpg"], ("nokia",) * 10, "What brand is it?\nAnswer"),
    "pope": (6, ["COCO_val2014_1.jpg"], ("no",), "Is there a dog in the image?\nAnswer"),
    "seed-image": (1, ["1454426_2591111986"], ("A",), "How many towels are in the image?\nA. One"),
    "mme": (28, ["code_reasoning/0001.png"], ("no",), "Is it blue?\nAnswer the question using a single word"),
}  # fmt: skip

RIGHT = {
    "tempcompass": ["B", "No.", "It grows."],
    "mm-vet": ["x is -1 or -5", "It is a van."],
    "mmmu": ["(B)", "The answer is 24"],
    "textvqa": ["Nokia"],
    "docvqa": ["1/8/93", "X"],
    "hallusionbench": ["No", "Yes, it is.", "no", "yes", "Yes"],
    "mvbench": ["B) It rose."] * 20,
}


def test_every_benchmark_has_its_miniature():
    assert set(WRITERS) == set(BENCHMARKS) == set(EXPECTED)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_layout(name, tmp_path):
    items = load(name, tmp_path)
    count, media, answers, begins = EXPECTED[name]
    assert len(items) == count
    assert len({item.item_id for item in items}) == count
    assert [medium.path for medium in items[-1].media] == media
    assert {medium.kind for item in items for medium in item.media} == {BENCHMARKS[name].kind}
    assert items[-1].answers == answers
    assert items[-1].prompt.startswith(begins)
    assert load(name, tmp_path) == items


@pytest.mark.parametrize("name", BENCHMARKS)
def test_right_answers_score_in_full_and_nonsense_scores_nothing(name, tmp_path):
    items = [item for item in load(name, tmp_path) if item.answers and item.answers != ("@",)]
    said = RIGHT.get(name) or [item.answers[0] for item in items]
    full = {"mme": 2800.0}.get(name, 100.0)
    right = BENCHMARKS[name].metrics(scored(name, items, said))
    assert next(iter(right.values())).value == pytest.approx(full)
    for nonsense in ("", "???", "\n"):
        rows = scored(name, items, [nonsense] * len(items))
        readable = name == "pope" and nonsense == "???"  # everything that has no "no" is a yes there
        assert readable or next(iter(BENCHMARKS[name].metrics(rows).values())).value == 0, (nonsense, rows)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_other_files_are_refused_with_what_was_expected(name, tmp_path):
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(ValueError, match=f"{tmp_path}.*(expected|none of the published)"):
        list(BENCHMARKS[name].load(tmp_path, LoadOptions(media=tmp_path, num_frames=4)))


def test_missing_fields_are_named_with_their_row(tmp_path):
    data = write_published("longvideobench", tmp_path)
    text = (data / "lvb_val.json").read_text()
    (data / "lvb_val.json").write_text(text.replace('"candidates"', '"options"'))
    with pytest.raises(ValueError, match=r"lvb_val\.json:1: no field 'candidates'"):
        list(BENCHMARKS["longvideobench"].load(data, LoadOptions(media=None)))


def test_images_inside_published_files_become_files_once(tmp_path):
    load("mmmu", tmp_path)
    unpacked = sorted(path.name for path in (tmp_path / "media").iterdir())
    # The third picture is shown by an option.
    assert unpacked == [*(f"validation_Art_Theory_1_{i}.png" for i in (1, 2, 3)), "validation_Math_3_1.png"]
    marked = tmp_path / "media/validation_Math_3_1.png"
    marked.write_bytes(b"kept")
    load("mmmu", tmp_path)
    assert marked.read_bytes() == b"kept"
    with pytest.raises(ValueError, match="--media-root"):
        list(BENCHMARKS["mmmu"].load(tmp_path / "data", LoadOptions(media=None)))


def test_subtitles_of_the_frames_that_are_seen(tmp_path):
    subtitle = tmp_path / "media/subtitle/fFjv93ACGo8.srt"
    subtitle.parent.mkdir(parents=True)
    cues = [("00:00:00,000", "00:00:01,000", "one"), ("00:00:01,500", "00:00:02,000", "too short"),
            ("00:00:02,000", "00:00:06,000", '<font color="white" size=".72c">two</font>'),
            ("00:00:06,500", "00:00:08,000", "three")]  # fmt: skip
    subtitle.write_text("\n\n".join(f"{i}\n{a} --> {b}\n{text}" for i, (a, b, text) in enumerate(cues)))
    assert [text for _, _, text in read_srt(subtitle.read_text())] == ["one", "too short", "two", "three"]
    items = load("video-mme-subtitles", tmp_path)
    # Four frames of 8 s, at 1, 3, 5 and 7: nothing is said at 1, "two" twice, "three" at 7.
    begins = "This video's subtitles are listed below:\ntwo\nthree\nSelect the best answer"
    assert [item.prompt.startswith(begins) for item in items] == [True, True, False], "the third has no subtitles"
    # Where the video is there, its own length counts: four frames of 2 s, at ¼, ¾, 1¼ and 1¾.
    write_video(tmp_path / "media/data/fFjv93ACGo8.mp4", shot_lengths=(12, 12), fps=12)
    begins = "This video's subtitles are listed below:\none\ntoo short\nSelect"
    assert [item.prompt.startswith(begins) for item in load("video-mme-subtitles", tmp_path)] == [True, True, False]
    with pytest.raises(ValueError, match="--num-frames"):
        list(BENCHMARKS["video-mme-subtitles"].load(tmp_path / "data", LoadOptions(media=tmp_path / "media")))


def test_submissions_where_answers_are_not_published(tmp_path):
    for name, expected in {
        "egoschema": {"u1": 1, "u2": -1},
        "longvideobench": {"86_0": "B", "86_1": ""},
        "docvqa": [{"questionId": 337, "answer": "B"}, {"questionId": 338, "answer": ""}],
    }.items():
        submission = BENCHMARKS[name].submission
        assert submission is not None
        items = load(name, tmp_path / name)
        assert submission(list(zip(items, ("B", None), strict=True))) == expected


@needs_real_rows
@pytest.mark.parametrize(
    ("name", "files", "questions"),
    [
        ("nextqa", {"nextqa_val.csv": "val.csv"}, 4996),
        ("msvd-qa", {"msvd_valqa.csv": "test.csv"}, 6415),
        ("msrvtt-qa", {"msrvtt_valqa.csv": "test.csv"}, 12278),
        (
            "activitynet-qa",
            {"activitynetqa_test_q.json": "test_q.json", "activitynetqa_test_a.json": "test_a.json"},
            8000,
        ),
    ],
)
def test_real_rows(name, files, questions, tmp_path):
    for source, target in files.items():
        shutil.copy(REAL / source, tmp_path / target)
    items = list(BENCHMARKS[name].load(tmp_path, LoadOptions(media=None)))
    assert len({item.item_id for item in items}) == len(items) == questions
    rows = scored(name, items, [item.answers[0] for item in items])
    assert all(row.correct for row in rows)
    rows = scored(name, items, ["(" if name == "nextqa" else "zzz"] * len(items))
    assert not any(row.correct for row in rows)
