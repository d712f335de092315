"""The published files themselves (LINVT_SHARED/annotations)."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from linvt.annotations import detect_format, read_annotations

SHARED = os.environ.get("LINVT_SHARED")
FOLDER = Path(SHARED or ".") / "annotations"
FILES = {
    "msvd_valqa.csv": ("msvd-qa", 6415),
    "msrvtt_valqa.csv": ("msrvtt-qa", 12278),
    "nextqa_val.csv": ("nextqa", 4996),
    "activitynetqa_test_q.json": ("activitynet-qa", 8000),
}

pytestmark = pytest.mark.skipif(SHARED is None, reason="set LINVT_SHARED to the folder that holds annotations/")


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_read(name):
    format, num_rows = FILES[name]
    assert detect_format(FOLDER / name) == format
    assert sum(len(annotation.turns) for annotation in read_annotations([FOLDER / name])) == num_rows


@pytest.mark.parametrize("name", ["msvd_valqa.csv", "msrvtt_valqa.csv"])
def test_open_answers_are_those_of_the_columns(name):
    with (FOLDER / name).open(newline="") as file:
        expected = [(row["video"], row["question"], row["answer"]) for row in csv.DictReader(file)]
    prefix, suffix = ("vid", ".avi") if name.startswith("msvd") else ("video", ".mp4")
    found = [
        (a.media_id.removeprefix(prefix).removesuffix(suffix), a.turns[0].question, a.turns[0].answer)
        for a in read_annotations([FOLDER / name])
    ]
    assert found == expected


def test_nextqa_answers_are_the_options_of_their_numbers():
    with (FOLDER / "nextqa_val.csv").open(newline="") as file:
        expected = [(row["video"] + ".mp4", row[f"a{row['answer']}"].strip()) for row in csv.DictReader(file)]
    annotations = list(read_annotations([FOLDER / "nextqa_val.csv"]))
    assert [(a.media_id, a.turns[0].answer) for a in annotations] == expected
    assert {len(a.turns[0].choices or ()) for a in annotations} == {5}


def test_activitynet_answers_are_those_of_their_ids():
    answers = {row["question_id"]: row for row in json.loads((FOLDER / "activitynetqa_test_a.json").read_text())}
    questions = json.loads((FOLDER / "activitynetqa_test_q.json").read_text())
    annotations = list(read_annotations([FOLDER / "activitynetqa_test_q.json"]))
    assert [(a.media_id, a.turns[0].question, a.turns[0].answer) for a in annotations] == [
        (f"v_{row['video_name']}.*", row["question"].strip(), answers[row["question_id"]]["answer"].strip())
        for row in questions
    ]
    # As the paper's table of types has them.
    counts = Counter(a.turns[0].family for a in annotations)
    assert (counts["motion"], counts["spatial relationship"], counts["temporal relationship"]) == (800, 800, 800)
    assert counts["yes/no"] == 2094
