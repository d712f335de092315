"""`python -m linvt.annotations`, as a user runs it."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from linvt.annotations import FORMATS, read_annotations
from linvt.annotations.config import ConvertConfig
from linvt.annotations.duplicates import sample_keys
from linvt.extraction.inputs import list_inputs
from tests.annotations.test_published_formats import WEBVID, write_json, write_text

ROOT = Path(__file__).parents[2]
LONG = "A man in a red jacket walks his dog along the beach."


def run(*arguments, cwd, fails=False):
    """(the lines of text on stdout, the JSON in its last line)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "linvt.annotations", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert bool(done.returncode) == fails, done.stderr
    assert "Traceback" not in done.stderr
    *lines, last = done.stdout.splitlines()
    return lines, json.loads(last)


@pytest.fixture
def sets(tmp_path):
    """Two sets that share a video and a sample, with all that can be wrong; and the media that are there."""
    write_json(
        tmp_path / "chatgpt.json",
        [
            {"q": "What happens?", "a": LONG, "video_id": "v_a"},
            {"q": "Who?", "a": "a man", "video_id": "v_a"},
            {"q": "Who?", "a": "A man. ", "video_id": "v_a"},
            {"q": "Why?", "a": "", "video_id": "v_a"},
            {"q": "Where?", "a": "at sea", "video_id": "v_b"},
            {"q": "Where?", "a": "at sea", "video_id": "v_c"},
        ],
    )
    write_json(
        tmp_path / "chat2.json",
        [
            {"video": "anet/v_a.mp4", "QA": [{"i": "Describe.", "q": "", "a": LONG.upper()}]},
            {"video": "anet/v_a.mp4", "QA": [{"i": "", "q": "When?", "a": "at noon"}], "start": 0, "end": 2},
            {"image": "x.jpg", "QA": [{"i": "", "q": "What?", "a": "A cat."}]},
        ],
    )
    media = tmp_path / "media"
    (media / "anet").mkdir(parents=True)
    for name in ("v_a.webm", "v_c.mp4", "v_c.mkv", "anet/v_a.mp4"):
        (media / name).touch()
    return tmp_path


def test_inspect_counts_everything_and_names_it(sets):
    lines, found = run("inspect", "chatgpt.json", "chat2.json", "--media-root", "media", cwd=sets)
    assert {name: found[name] for name in ("rows", "samples", "broken", "left_out", "missing_media")} == {
        "rows": 9,
        "samples": 7,
        "broken": 1,
        "left_out": 1,
        "missing_media": 2,
    }
    one, other = found["files"]
    assert (one["format"], one["rows"], one["questions"], one["media"]) == ("video-chatgpt", 6, 5, 3)
    assert one["broken_rows"] == [
        {"file": "chatgpt.json", "line": 1, "row": 4, "reason": "an empty answer to 'Why?'"},
    ]
    assert one["missing_examples"] == ["v_b.*", "v_c.* may be any of ['v_c.mkv', 'v_c.mp4']; leave one of them"]
    assert (one["rows_with_missing_media"], one["duplicates"]) == (2, 1)
    assert (other["format"], other["rows_about_a_section"], other["missing_media"]) == ("videochat2-it", 1, 0)
    assert other["left_out_because"] == {"an image; the video part is read alone": 1}
    duplicates = found["duplicates"]
    assert (duplicates["within"], duplicates["across"]) == (1, 1)
    within, across = duplicates["pairs"]
    assert [place["row"] for place in within["examples"][0]] == [2, 3]
    assert (across["files"], across["samples"], across["shared_media"]) == (["chatgpt.json", "chat2.json"], 1, 1)
    assert [(place["file"], place["row"]) for place in across["examples"][0]] == [
        ("chatgpt.json", 1),
        ("chat2.json", 1),
    ]
    text = "\n".join(lines)
    assert "chatgpt.json:1: an empty answer to 'Why?' (row 4)" in text
    assert "chatgpt.json and chat2.json: 1 samples and 1 media in both" in text


def test_inspect_shows_as_much_as_is_asked_for_and_counts_all(sets):
    write_text(sets / "broken.csv", WEBVID + 'x,"\n' * 30)
    lines, found = run("inspect", "broken.csv", "--show", 2, cwd=sets)
    assert (found["broken"], len(found["files"][0]["broken_rows"])) == (30, 2)
    assert sum("broken.csv:" in line and "2 fields, the header has 5" in line for line in lines) == 2
    assert found["files"][0]["broken_rows"][0]["line"] == 8


def test_inspect_says_what_it_cannot_read(sets):
    for arguments, message in [
        (["nothing.json"], "no such annotation file: nothing.json"),
        (["media/v_a.webm"], "its format cannot be told"),
        (["chat2.json", "--format", "coco"], "unknown annotation format 'coco'"),
        (["chat2.json", "--media-root", "nowhere"], "nowhere: no such folder"),
    ]:
        _, found = run("inspect", *arguments, cwd=sets, fails=True)
        assert message in found["error"]
    assert run("inspect", cwd=sets, fails=True)[1]["error_class"] == "UsageError"


def test_convert_resolves_media_and_leaves_out_what_it_is_told_to(sets):
    flags = ["--media-root", "media", "--out", "train.jsonl"]
    _, found = run("convert", "chatgpt.json", "chat2.json", *flags, cwd=sets, fails=True)
    assert "chatgpt.json:1: an empty answer to 'Why?' (row 4); leave such rows out with" in found["error"]
    assert not (sets / "train.jsonl").exists()
    (sets / "media/v_c.mkv").unlink()
    flags += ["--on-problem", "skip", "--drop-duplicates"]
    _, found = run("convert", "chatgpt.json", "chat2.json", *flags, cwd=sets)
    expected = {"rows": 9, "left_out": 1, "broken": 1, "missing_media": 1, "duplicates": 2, "written": 4, "samples": 4}
    assert found == {"out": "train.jsonl", **expected}
    annotations = list(read_annotations([sets / "train.jsonl"]))
    assert [(a.media_id, a.turns[0].answer, a.section_s) for a in annotations] == [
        ("v_a.webm", LONG, None),
        ("v_a.webm", "a man", None),
        ("v_c.mp4", "at sea", None),
        ("anet/v_a.mp4", "at noon", (0.0, 2.0)),
    ]
    # And it is a list of media for extraction.
    inputs = list_inputs(str(sets / "train.jsonl"), media_root=str(sets / "media"))
    assert [media.video_id for media in inputs] == ["anet/v_a.mp4", "v_a.webm", "v_c.mp4"]
    _, found = run("convert", "chat2.json", "--out", "train.jsonl", cwd=sets, fails=True)
    assert "train.jsonl exists" in found["error"]


def test_converting_twice_changes_nothing(sets):
    write_text(sets / "results_2M_val.csv", WEBVID)
    for number, source in enumerate(["results_2M_val.csv", "0.jsonl", "1.jsonl"]):
        run("convert", source, "--out", f"{number}.jsonl", "--media-prefix", "" if number else "webvid/", cwd=sets)
    assert (sets / "1.jsonl").read_bytes() == (sets / "0.jsonl").read_bytes() == (sets / "2.jsonl").read_bytes()
    assert next(read_annotations([sets / "0.jsonl"])).media_id == "webvid/006001_006050/21179416.mp4"


def test_a_conversation_is_dropped_whole_or_not_at_all(tmp_path):
    def row(*turns):
        said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn)]
        return {"video": "a.mp4", "conversations": said}

    who, what, where = ("Who is it?", "A man."), ("What is he holding?", "A cup."), ("Where is he?", "At sea.")
    write_json(tmp_path / "a.json", [row(who, what), row(who, where), row(who, what), row(where)])
    _, found = run("convert", "a.json", "--out", "b.jsonl", "--drop-duplicates", cwd=tmp_path)
    assert (found["rows"], found["written"], found["samples"], found["duplicates"]) == (4, 2, 4, 3)
    kept = [[(t.answer, t.follows) for t in a.turns] for a in read_annotations([tmp_path / "b.jsonl"])]
    assert kept == [[("A man.", False), ("A cup.", True)], [("A man.", False), ("At sea.", True)]]


def test_help_is_light_and_a_wrong_command_is_told(tmp_path):
    script = (
        "import runpy, sys\nsys.argv = ['linvt.annotations', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('linvt.annotations', run_name='__main__')\n"
        "except SystemExit as exit:\n    assert not exit.code, exit.code\n"
        "print('loaded:', sorted({'ray', 'torch', 'transformers', 'av', 'numpy'} & set(sys.modules)))\n"
    )
    for arguments in (["--help"], ["inspect", "--help"], ["convert", "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "loaded: []"), done.stderr
    _, found = run("inspekt", cwd=tmp_path, fails=True)
    assert found["error_class"] == "UsageError"


def test_the_page_on_datasets_names_every_format_and_no_flag_that_is_none():
    page = (ROOT / "docs/datasets.md").read_text()
    assert [name for name in FORMATS if f"`{name}`" not in page] == []
    flags = set(re.findall(r"python -m linvt\.annotations convert [^\n|`]*?(--[a-z-]+)", page))
    assert flags <= {f"--{name.replace('_', '-')}" for name in ConvertConfig.__dataclass_fields__}


def test_keys_tell_samples_apart_as_far_as_they_should(tmp_path):
    def keys(media, question, answer, **rest):
        row = {"media": media, "qa": [{"question": question, "answer": answer}], **rest}
        return list(sample_keys(next(read_annotations([write_json(tmp_path / "a.json", [row])]))))

    same = keys("b/v_a.mp4", "Who is it?", "A man.")
    assert keys("v_a.*", " who  is it ", "a man") == same
    for other in (
        ("v_b.mp4", "Who is it?", "A man."),
        ("v_a.mp4", "Who?", "A man."),
        ("v_a.mp4", "Who is it?", "A dog"),
    ):
        assert keys(*other) != same
    assert keys("v_a.mp4", "Who is it?", "A man.", section_s=[0, 1]) != same
    assert keys("v_a.mp4", "Describe it.", LONG) == keys("v_a.mp4", "What happens?", LONG)


def test_duplicates_are_counted_like_a_set_counts_them(tmp_path):
    chance = random.Random(0)
    for name in ("a", "b"):
        rows = [{"q": f"q{chance.randrange(9)}", "a": "yes", "video_id": f"v_{chance.randrange(9)}"} for _ in range(99)]
        write_json(tmp_path / f"{name}.json", rows)
    _, found = run("inspect", "a.json", "b.json", cwd=tmp_path)
    bags = [
        [(a.media_id, a.turns[0].question) for a in read_annotations([tmp_path / f"{name}.json"])]
        for name in ("a", "b")
    ]
    assert [file["duplicates"] for file in found["files"]] == [99 - len(set(bag)) for bag in bags]
    assert found["duplicates"]["across"] == len(set(bags[0]) & set(bags[1]))
