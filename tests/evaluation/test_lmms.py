"""lmms-eval's tasks and results: what is written for it, and that none of its silent failures passes for a number."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from linvt.evaluation.benchmarks import BENCHMARKS
from linvt.evaluation.config import EvaluateConfig
from linvt.evaluation.entry import LoadOptions
from linvt.evaluation.lmms import task_functions
from linvt.evaluation.lmms.environment import check_environment
from linvt.evaluation.lmms.running import LmmsJob, command_of, read_lmms_eval
from linvt.evaluation.lmms.tasks import METRIC, export_task, task_name
from pipelines.evaluate import evaluate
from pipelines.lmms_eval import _main_numbers
from tests.evaluation.benchmarks.published import write_published
from tests.pipelines.openai_server import openai_server, text_of

ENVIRONMENT = os.environ.get("LINVT_LMMS_ENV")


def export(name: str, tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the task, and its rows; media are empty files of the right names."""
    data, media, out = write_published(name, tmp_path / "data"), tmp_path / "media", tmp_path / "task"
    items = list(BENCHMARKS[name].load(data, LoadOptions(media=media, num_frames=4)))
    for item in items:
        for medium in item.media:
            path = media / medium.path.replace(".*", ".webm")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    export_task(BENCHMARKS[name], items, media_root=media, out=out)
    return out, [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.lmms_ours])
def test_what_lmms_eval_lacks_becomes_a_task(name, tmp_path):
    out, docs = export(name, tmp_path)
    (task,) = BENCHMARKS[name].lmms_tasks
    text = (out / f"{task}.yaml").read_text()
    content = yaml.safe_load(text.replace("!function ", ""))
    assert content["task"] == task == task_name(BENCHMARKS[name])
    assert content["dataset_kwargs"]["data_files"]["test"] == str(out / "items.jsonl")
    assert content["metric_list"][0]["metric"] == METRIC
    # Every function that the YAML names is one that utils.py has.
    for reference in [line.split("utils.")[1] for line in text.splitlines() if "!function" in line]:
        assert callable(getattr(task_functions, reference))
        assert reference in (out / "utils.py").read_text()
    assert len({tuple(doc) for doc in docs}) == 1, "one schema for all rows"
    for doc in docs:
        assert all(Path(path).is_file() for path in doc["media"])
        (message,) = task_functions.doc_to_messages(doc)
        assert [part["type"] for part in message["content"]] == [*["video"] * len(doc["media"]), "text"]


def test_a_task_scores_as_the_benchmark_does(tmp_path):
    _, docs = export("videovista", tmp_path)
    results = [task_functions.process_results(doc, [said])[METRIC] for doc, said in zip(docs, ("B. 2", "D"))]
    results = json.loads(json.dumps(results))
    assert [result["correct"] for result in results] == [True, False]
    assert task_functions.aggregate(results) == 50
    rows = [task_functions.row_from_json(result) for result in results]
    metrics = BENCHMARKS["videovista"].metrics(rows)
    assert {name: number.value for name, number in metrics.items()} == {
        "accuracy": 50,
        "understanding": 100,
        "reasoning": 0,
    }


def test_a_task_asks_the_judge_that_is_named(tmp_path, monkeypatch):
    _, docs = export("mmbench-video", tmp_path)
    with openai_server(lambda body: "3" if "Hello" in text_of(body) else "1") as server:
        monkeypatch.setenv("LINVT_JUDGE_URL", server.url)
        monkeypatch.setenv("LINVT_JUDGE_MODEL", "judge")
        task_functions._judge.cache_clear()
        results = [task_functions.process_results(doc, ["something"])[METRIC] for doc in docs]
        assert [result["score"] for result in results] == [3, 1]
        assert task_functions.aggregate(results) == 2
        judge = task_functions._judge("mmbench-video")
        assert judge is not None
        judge.close()
    task_functions._judge.cache_clear()


def test_media_that_are_not_there_are_told_before_anything_runs(tmp_path):
    data = write_published("msvd-qa", tmp_path / "data")
    items = BENCHMARKS["msvd-qa"].load(data, LoadOptions(media=None))
    (tmp_path / "media").mkdir()
    with pytest.raises(ValueError, match=r"3 media are not below .*vid1\.avi"):
        export_task(BENCHMARKS["msvd-qa"], items, media_root=tmp_path / "media", out=tmp_path / "task")


def test_the_command_line_exports_and_says_what_is_wrong(tmp_path):
    data, media = write_published("videovista", tmp_path / "data"), tmp_path / "media/merged/Animal/3"
    media.mkdir(parents=True)
    (media / "Animal.3.clip_0.mp4").touch()
    command = [sys.executable, "-m", "linvt.evaluation.lmms"]
    arguments = ["--data", str(data), "--media", str(tmp_path / "media"), "--out", str(tmp_path / "task")]
    done = subprocess.run([*command, "export", "videovista", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task"] == "linvt_videovista"
    assert (tmp_path / "task/linvt_videovista.yaml").is_file()
    done = subprocess.run([*command, "export", "videovista2", *arguments], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["error_class"]) == (1, "ValueError")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "setup" in done.stderr


def write_run(
    folder: Path, answers: dict[str, list[str]], results: dict[str, dict[str, Any]], *, original: int = 2
) -> None:
    """The files that lmms-eval 0.7.3 leaves."""
    out = folder / "linvt"
    out.mkdir(parents=True, exist_ok=True)
    counts = {task: {"original": original, "effective": len(said)} for task, said in answers.items()}
    (out / "20260101_000000_results.json").write_text(json.dumps({"results": results, "n-samples": counts}))
    for task, said in answers.items():
        rows = [{"doc_id": i, "filtered_resps": [text], "target": "A"} for i, text in enumerate(said)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"20260101_000000_samples_{task}.jsonl").write_text(lines)


def test_results_are_read_back(tmp_path):
    answers = {"mvbench_action_count": ["A", ""], "mvbench_object_shuffle": ["B", "(C)"]}
    found = {"mvbench_accuracy,none": 50.0, "mvbench_accuracy_stderr,none": 2.0}
    other = {"mvbench_accuracy,none": 100.0, "mvbench_accuracy_stderr,none": 0.0}
    write_run(tmp_path, answers, {"mvbench_action_count": found, "mvbench_object_shuffle": other})
    read = read_lmms_eval(tmp_path, limit=None)
    assert (read.questions, read.empty) == (4, 1)
    number = _main_numbers(BENCHMARKS["mvbench"], read)["mean of tasks"]
    assert number["value"] == 75
    assert number["high"] - number["value"] == pytest.approx(1.96 * 2 / 2, rel=1e-3)
    # A share becomes percent, the parts of MME are added, an error that is not given is no interval.
    write_run(tmp_path / "pope", {"pope": ["yes", "no"]}, {"pope": {"pope_f1_score,none": 0.8}})
    number = _main_numbers(BENCHMARKS["pope"], read_lmms_eval(tmp_path / "pope", limit=None))["F1"]
    assert (number["value"], number["low"]) == (80, None)
    both = {"mme_perception_score,none": 1200.0, "mme_cognition_score,none": 300.0}
    write_run(tmp_path / "mme", {"mme": ["yes", "no"]}, {"mme": both})
    assert _main_numbers(BENCHMARKS["mme"], read_lmms_eval(tmp_path / "mme", limit=None))["total"]["value"] == 1500
    with pytest.raises(RuntimeError, match="lack"):
        _main_numbers(BENCHMARKS["pope"], read_lmms_eval(tmp_path / "mme", limit=None))


def test_silent_failures_are_errors(tmp_path):
    with pytest.raises(RuntimeError, match="wrote 0 results"):
        read_lmms_eval(tmp_path, limit=None)
    results = {"mlvu_dev": {"mlvu_percetion_score,none": 40.0}}
    failed = "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Error code: 400 - Input tag 'audio_url' found"
    write_run(tmp_path / "failed", {"mlvu_dev": ["A", failed]}, results)
    with pytest.raises(RuntimeError, match=r"1 of 2 answers .* failed requests.*audio_url"):
        read_lmms_eval(tmp_path / "failed", limit=None)
    write_run(tmp_path / "fewer", {"mlvu_dev": ["A"]}, results)
    with pytest.raises(RuntimeError, match="1 rows of 2"):
        read_lmms_eval(tmp_path / "fewer", limit=None)
    assert read_lmms_eval(tmp_path / "fewer", limit=1).questions == 2
    write_run(tmp_path / "empty", {"mlvu_dev": ["", "\n"]}, results)
    with pytest.raises(RuntimeError, match="every answer"):
        read_lmms_eval(tmp_path / "empty", limit=None)
    write_run(tmp_path / "good", {"mlvu_dev": ["A", "B"]}, results)
    assert read_lmms_eval(tmp_path / "good", limit=None).empty == 0
    with pytest.raises(RuntimeError, match="exited with 1"):
        read_lmms_eval(tmp_path / "good", limit=None, exit_code=1)
    (tmp_path / "good/log.txt").write_text("fine\nv1_7 failed to get a score.\n")
    with pytest.raises(RuntimeError, match="judge failed, the first: v1_7"):
        read_lmms_eval(tmp_path / "good", limit=None)


def test_the_command_names_no_key(tmp_path):
    job = LmmsJob(
        env=tmp_path, endpoint="http://127.0.0.1:8000/v1", model="linvt", tasks=("pope",), out=tmp_path / "out",
        num_frames=8, concurrency=4, limit=3, environment={"OPENAI_API_KEY": "secret"},
    )  # fmt: skip
    command = command_of(job)
    assert "secret" not in " ".join(command)
    assert command[command.index("--limit") + 1] == "3"
    arguments = dict(part.split("=", 1) for part in command[command.index("--model_args") + 1].split(","))
    assert (arguments["pass_video_url"], arguments["max_frames_num"], arguments["timeout"]) == ("True", "8", "1800")


def test_what_goes_to_lmms_eval(tmp_path):
    known: dict[str, Any] = {"out": tmp_path, "endpoint": "http://127.0.0.1:9/v1"}
    assert EvaluateConfig(benchmark="mvbench", **known).by_lmms_eval
    assert not EvaluateConfig(benchmark="mvbench", data=(tmp_path,), media_root=tmp_path, **known).by_lmms_eval
    with pytest.raises(ValueError, match="--endpoint, or --data"):
        EvaluateConfig(benchmark="mvbench", out=tmp_path, model=tmp_path, cache="cache")
    with pytest.raises(ValueError, match="lmms-eval has no videovista"):
        EvaluateConfig(benchmark="videovista", **known)
    with pytest.raises(ValueError, match="needs a judge"):
        EvaluateConfig(benchmark="mm-vet", **known)
    with pytest.raises(ValueError, match="asks its judge for gpt-4"):
        EvaluateConfig(benchmark="hallusionbench", judge_url="http://x", judge_model="gpt-5", **known)
    with pytest.raises(ValueError, match=r"linvt\.evaluation\.lmms setup"):
        evaluate(EvaluateConfig(benchmark="pope", lmms_env=tmp_path / "none", **known))


@pytest.mark.slow
@pytest.mark.skipif(ENVIRONMENT is None, reason="needs an environment of lmms-eval in $LINVT_LMMS_ENV")
def test_lmms_eval_itself_runs_a_task_and_its_failures_are_seen(tmp_path):
    assert ENVIRONMENT is not None
    check_environment(Path(ENVIRONMENT))
    _, docs = export("msvd-qa", tmp_path)
    right = {doc["prompt"]: doc["target"] for doc in docs}
    known = {"benchmark": "msvd-qa", "harness": "lmms-eval", "lmms_env": Path(ENVIRONMENT), "batch_size": 2}
    known |= {"data": (tmp_path / "data",), "media_root": tmp_path / "media", "num_frames": 5}
    with openai_server(lambda body: right[text_of(body)]) as server:
        config = EvaluateConfig(out=tmp_path / "out", endpoint=server.url, **known)
        outcome = evaluate(config)
    assert outcome["metrics"] == {"exact match": 100}
    assert outcome["harness"] == "lmms-eval 0.7.3"
    assert "100.0*†‡" in (tmp_path / "out/tables.md").read_text()
    assert {body["media_io_kwargs"]["video"]["num_frames"] for body in server.bodies} == {5}
    for body in server.bodies:
        # Also .webm, which lmms-eval would take for sound by its name.
        assert [part["type"] for part in body["messages"][0]["content"]] == ["video_url", "text"]
    # The server is gone now: lmms-eval exits 0, with results.
    with pytest.raises(RuntimeError, match=r"3 of 3 answers .* failed requests"):
        evaluate(EvaluateConfig(out=tmp_path / "gone", endpoint=server.url, **known))
