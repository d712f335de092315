"""Every benchmark in miniature: files laid out as published, with made-up rows and what was asked in them.

Media are only named here; tests that need them put them where `media_of` says.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from linvt.evaluation.benchmarks.short_video_choices import MVBENCH_FOLDERS


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _png(color: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{color}.png"}


def _msvd(data: Path) -> None:
    _json(
        data / "test_qa.json",
        [
            {"id": 0, "video_id": 1, "question": "what is chewing on a nut?", "answer": "chipmunk"},
            {"id": 1, "video_id": 1, "question": "who is eating?", "answer": "animal"},
            {"id": 2, "video_id": 2, "question": "what moves?", "answer": "ball"},
        ],
    )


def _msrvtt(data: Path) -> None:
    rows = [
        {"id": 0, "category_id": 4, "video_id": 7010, "question": "what is a man doing?", "answer": "talk"},
        {"id": 1, "category_id": 4, "video_id": 7011, "question": "how many men are there?", "answer": "two"},
    ]
    _json(data / "test_qa.json", rows)


def _activitynet(data: Path) -> None:
    _json(
        data / "test_q.json",
        [
            {"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers", "question_id": "v_1_3"},
            {"video_name": "1QIUV7WYKXg", "question": "what color is the hat", "question_id": "v_1_4"},
        ],
    )
    _json(
        data / "test_a.json",
        [{"answer": "yes", "type": 3, "question_id": "v_1_3"}, {"answer": "red", "type": 4, "question_id": "v_1_4"}],
    )


def _tgif(data: Path) -> None:
    _text(
        data / "Test_frameqa_question.csv",
        "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription",
        "tumblr_a\twhat is running ?\tdog\t0\tFRAMEQA1\t1\ta dog is running",
        "tumblr_b\thow many men dance ?\ttwo\t1\tFRAMEQA2\t2\ttwo men dance",
    )


def _mvbench(data: Path) -> None:
    for task in MVBENCH_FOLDERS:
        _json(
            data / "json" / f"{task}.json",
            [
                {
                    "video": f"{task}.mp4",
                    "question": "What happened?",
                    "candidates": ["It fell.", "It rose.", "Nothing."],
                    "answer": "It rose.",
                }
            ],
        )


def _mmbench_video(data: Path) -> None:
    _text(
        data / "MMBench-Video.tsv",
        "index\tvideo\tvideo_type\tquestion\tanswer\tdimensions\tvideo_path",
        "0\tabc\tNews\tWhat is said?\tHello\t['OCR', 'Causal Reasoning']\t./video/abc.mp4",
        "1\tabc\tNews\t\"Two\nlines?\"\tYes\t['Video Topic']\t./video/abc.mp4",
    )


def _video_mme(data: Path) -> None:
    row = {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Law",
        "url": "https://…",
        "videoID": "fFjv93ACGo8",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many?",
        "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4."],
        "answer": "C",
    }
    other = {"duration": "long", "videoID": "xyz", "question_id": "002-1", "question": "Who?", "answer": "A"}
    _parquet(data / "videomme/test-00000-of-00001.parquet", [row, row | {"question_id": "001-2"}, row | other])


def _nextqa(data: Path) -> None:
    _text(
        data / "test.csv",
        "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4",
        "4010069381,369,640,480,how do the two man play the instrument,2,6,CH,roll,tap,strum,hit,pat",
        "4010069381,369,640,480,how many men are there,4,7,DC,two,one,three,two,two",
    )
    _json(data / "map_vid_vidorID.json", {"4010069381": "1164/4010069381"})


def _egoschema(data: Path) -> None:
    options = {f"option {i}": f"c {i}" for i in range(5)}
    _json(
        data / "questions.json",
        [
            {"q_uid": uid, "google_drive_id": "g", "question": f"What is c doing in {uid}?", **options}
            for uid in ("u1", "u2")
        ],
    )
    _json(data / "subset_answers.json", {"u1": 3})


def _videovista(data: Path) -> None:
    row = {
        "video_name": "Animal.3.clip_0.mp4",
        "time": 180,
        "category": "Animal",
        "Question": "How many?",
        "Answer_Choices": ["1", "2", "3", "4"],
        "Answer": 1,
    }
    _json(
        data / "VideoVista.json",
        [
            row | {"question_id": 1, "Type": "Objects Count"},
            row | {"question_id": 2, "Type": "Logic Reasoning", "Answer": 0},
        ],
    )


def _tempcompass(data: Path) -> None:
    _json(
        data / "questions/multi-choice.json",
        {"7": {"speed": [{"question": "How fast?\nA. slow\nB. fast", "answer": "B. fast"}]}},
    )
    _json(data / "questions/yes_no.json", {"7": {"order": [{"question": "Is it first?", "answer": "no"}]}})
    matching = {
        "question": "Which caption matches?\nCaption A: It grows.\nCaption B: It shrinks.",
        "answer": "Caption A: It grows.",
    }
    _json(data / "questions/caption_matching.json", {"7": {"attribute_change": [matching]}})


def _mlvu(data: Path) -> None:
    files = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
    for number, file in enumerate(files):
        row = {
            "video": f"{number}.mp4",
            "duration": 500.0,
            "question": "What?",
            "candidates": ["a", "b", "c", "d"],
            "answer": "b",
            "question_type": file[2:],
        }
        # An answer that is none of the options, as two of the published ones are.
        rows = [row, row | {"answer": "e"}] if file == "2_needle" else [row]
        _json(data / "json" / f"{file}.json", rows)


def _long_video_bench(data: Path) -> None:
    row = {
        "video_id": "86",
        "video_path": "86.mp4",
        "question": "What?",
        "candidates": ["a", "b", "c"],
        "duration_group": 15,
        "question_category": "S2E",
        "duration": 12.0,
        "subtitle_path": "86.json",
        "starting_timestamp_for_subtitles": 0,
    }
    _json(data / "lvb_val.json", [row | {"id": "86_0", "correct_choice": 2}, row | {"id": "86_1", "correct_choice": 0}])


def _mmmu(data: Path) -> None:
    row: dict[str, Any] = {
        "id": "validation_Art_Theory_1",
        "question": "Which of <image 1> and <image 2>?",
        "options": "['red', \"it's blue\", '<image 3>']",
        "explanation": "",
        "answer": "B",
        "question_type": "multiple-choice",
        "subfield": "",
        **{f"image_{i}": None for i in range(1, 8)},
    }
    row |= {"image_1": _png("red"), "image_2": _png("blue"), "image_3": _png("green")}
    _parquet(data / "Art_Theory/validation-00000-of-00001.parquet", [row])
    open_row = row | {
        "id": "validation_Math_3",
        "question": "How long is <image 1>?",
        "options": "[]",
        "answer": "['24', 'twenty-four']",
        "question_type": "open",
        "image_2": None,
        "image_3": None,
    }
    _parquet(data / "Math/validation-00000-of-00001.parquet", [open_row])


def _docvqa(data: Path) -> None:
    row = {"questionId": 337, "question": "what is the date?", "image": "documents/xnbl0037_1.png", "docId": 279}
    _json(
        data / "val_v1.0_withQT.json",
        {
            "dataset_name": "SP-DocVQA",
            "data": [row | {"answers": ["1/8/93"]}, row | {"questionId": 338, "answers": ["x"]}],
        },
    )


def _hallusion(data: Path) -> None:
    row = {
        "category": "VS",
        "subcategory": "chart",
        "visual_input": "1",
        "set_id": "0",
        "figure_id": "1",
        "sample_note": "import",
        "question_id": "0",
        "question": "Is it China?",
        "gt_answer_details": "It is Switzerland.",
        "gt_answer": "0",
        "filename": "./VS/chart/0_1.png",
    }
    no_figure = {"visual_input": "0", "figure_id": "0", "filename": None}
    other = {"question_id": "1", "question": "Is it Switzerland?", "gt_answer": "1"}
    _json(
        data / "HallusionBench.json",
        [
            row,
            row | other,
            row | no_figure,
            row | no_figure | other,
            row | other | {"category": "VD", "filename": "./VD/math/0_1.png", "subcategory": "math"},
        ],
    )


def _ai2d(data: Path) -> None:
    row = {"question": "What is it?", "options": ["sun", "moon"], "answer": "1", "image": _png("white")}
    _parquet(data / "data/test-00000-of-00001.parquet", [row, row | {"answer": "0"}])


def _mm_vet(data: Path) -> None:
    _json(
        data / "mm-vet.json",
        {
            "v1_0": {
                "imagename": "v1_0.png",
                "question": "What is x in the equation?",
                "answer": "-1<AND>-5",
                "imagesource": "…",
                "capability": ["ocr", "math"],
            },
            "v1_1": {
                "imagename": "v1_1.png",
                "question": "What is it?",
                "answer": "a car<OR>a van",
                "imagesource": "…",
                "capability": ["rec"],
            },
        },
    )


def _textvqa(data: Path) -> None:
    row = {
        "question_id": 34602,
        "image_id": "003a8ae2ef43b901",
        "question": "what brand is it?",
        "answers": ["nokia"] * 10,
    }
    _json(data / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})


def _pope(data: Path) -> None:
    for part in ("random", "popular", "adversarial"):
        row = {"question_id": 1, "image": "COCO_val2014_1.jpg", "text": "Is there a car in the image?", "label": "yes"}
        other = {"question_id": 2, "text": "Is there a dog in the image?", "label": "no"}
        _text(data / f"output/coco/coco_pope_{part}.json", json.dumps(row), json.dumps(row | other))


def _seed(data: Path) -> None:
    row = {
        "answer": "A",
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "data_id": "1454426_2591111986",
        "data_type": "image",
        "question": "How many towels are in the image?",
        "question_id": "101669",
        "question_type_id": 5,
    }
    _json(
        data / "SEED-Bench.json",
        {
            "questions": [row, row | {"question_id": "v1", "data_type": "video"}],
            "question_type": {"Instances Counting": 5},
        },
    )


def _mme(data: Path) -> None:
    from linvt.evaluation.rules.yes_no import MME_COGNITION, MME_PERCEPTION

    lines = ("Is it red? Please answer yes or no.\tYes", "Is it blue? Please answer yes or no.\tNo")
    for task in (*MME_PERCEPTION, *MME_COGNITION):
        folder = data / "MME_Benchmark_release_version" / task
        # The release has both layouts.
        texts, images = (folder / "questions_answers_YN", folder / "images") if task == "landmark" else (folder, folder)
        _text(texts / "0001.txt", *lines)
        images.mkdir(parents=True, exist_ok=True)
        (images / "0001.png").write_bytes(_png("red")["bytes"])


WRITERS: dict[str, Callable[[Path], None]] = {
    "msvd-qa": _msvd,
    "msrvtt-qa": _msrvtt,
    "activitynet-qa": _activitynet,
    "tgif-qa": _tgif,
    "mvbench": _mvbench,
    "mmbench-video": _mmbench_video,
    "video-mme": _video_mme,
    "video-mme-subtitles": _video_mme,
    "nextqa": _nextqa,
    "egoschema": _egoschema,
    "videovista": _videovista,
    "tempcompass": _tempcompass,
    "mlvu": _mlvu,
    "longvideobench": _long_video_bench,
    "mmmu": _mmmu,
    "docvqa": _docvqa,
    "hallusionbench": _hallusion,
    "ai2d": _ai2d,
    "mm-vet": _mm_vet,
    "textvqa": _textvqa,
    "pope": _pope,
    "seed-image": _seed,
    "mme": _mme,
}


def write_published(name: str, data: Path) -> Path:
    """Writes the benchmark's files below `data` and returns it."""
    data.mkdir(parents=True, exist_ok=True)
    WRITERS[name](data)
    return data
