"""Published benchmarks, from their files to the paper's tables: with a tiny real model, an endpoint, and a judge."""

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.responses import JSONResponse

from linvt.backbones import load_backbone
from linvt.evaluation.benchmarks import BENCHMARKS
from linvt.evaluation.config import EvaluateConfig
from linvt.evaluation.entry import LoadOptions
from linvt.evaluation.judge import Judge, JudgeError
from linvt.evaluation.rules.judging import MM_VET, VIDEO_CHATGPT
from linvt.shards import read_cache
from linvt.shards.index import write_index
from linvt.shards.storage import open_storage
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVT, LinVTConfig
from pipelines.evaluate import evaluate
from tests.evaluation.benchmarks.published import write_published
from tests.pipelines.openai_server import openai_server, text_of
from tests.pipelines.test_evaluate import _image_sample
from tests.shards.cache_builder import pending_sample, write_one_shard

MLVU_VIDEOS = [f"{n + 1}_{task}/{n}.mp4" for n, task in enumerate(
    ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning"))]  # fmt: skip
IMAGES = [*(f"validation_Art_Theory_1_{i}.png" for i in (1, 2, 3)), "validation_Math_3_1.png", "VS/chart/0_1.png"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    """All media of the miniatures of MLVU, MMMU and HallusionBench, but for one image and one video of theirs."""
    directory = str(tmp_path_factory.mktemp("cache"))
    generator = torch.Generator().manual_seed(0)
    samples = [
        pending_sample(video, torch.randn(3, 16, 64, generator=generator), slot=i)
        for i, video in enumerate(MLVU_VIDEOS[:-1])
    ]
    for image in IMAGES:
        samples.append(_image_sample(image, torch.randn(1, 16, 64, generator=generator), slot=len(samples)))
    storage = open_storage(directory)
    write_index(storage, [write_one_shard(storage, 0, samples)])
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_llava) -> Path:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("models") / "plain"
    torch.manual_seed(0)
    config = LinVTConfig(hidden_size=64, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=40)
    VideoLLM(load_backbone(tiny_llava, parts={"llm"}), LinVT(config)).save_pretrained(directory)
    return directory


@pytest.fixture
def run(tmp_path, cache, model) -> Callable[..., EvaluateConfig]:
    def make(name: str, **options: Any) -> EvaluateConfig:
        data = write_published(name, tmp_path / "data" / name)
        known = {"out": tmp_path / "out", "media_root": tmp_path / "media", "max_new_tokens": 4, "batch_size": 3}
        asked = {} if "endpoint" in options else {"model": model, "cache": cache, "threads_per_worker": 1}
        return EvaluateConfig(benchmark=name, data=(data,), **(known | asked | options))

    return make


def summary_of(config: EvaluateConfig) -> dict[str, Any]:
    return json.loads((config.out / config.benchmark / "summary.json").read_text())


def rows_of(config: EvaluateConfig) -> list[dict[str, Any]]:
    lines = (config.out / config.benchmark / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_model_answers_a_video_benchmark_from_its_cache(run, model, cache):
    config = run("mlvu")
    outcome = evaluate(config)
    assert (outcome["questions"], outcome["missing"]) == (8, 1)
    rows = rows_of(config)
    llm, opened = VideoLLM.from_pretrained(model, parts=["llm"]), read_cache(cache)
    items = {item.item_id: item for item in BENCHMARKS["mlvu"].load(config.data[0], LoadOptions(media=None))}
    for row in rows[:3]:
        (path,) = row["media"]
        video = opened.get(opened.video_ids[path])
        assert row["prediction"] == llm.answer(video, items[row["item_id"]].prompt, max_new_tokens=4).text
    assert len({row["prediction"] for row in rows}) > 3, "answers that never differ would show nothing"
    missing = rows[-1]
    assert (missing["prediction"], missing["correct"], missing["by"]) == (None, False, "missing")
    summary = summary_of(config)
    assert summary["metrics"]["M-Avg"]["count"] == 8, "a missing medium counts as wrong"
    assert set(summary["breakdowns"]["task"]) == {row["groups"]["task"] for row in rows}
    assert any("no medium to ask about" in note for note in summary["notes"])
    assert "| M-Avg |" in (config.out / "mlvu/summary.md").read_text()


def test_questions_about_several_images_and_about_none(run):
    outcome = evaluate(run("mmmu"))
    assert (outcome["questions"], outcome["missing"]) == (2, 0)
    config = run("hallusionbench")
    outcome = evaluate(config)
    # Two are asked without a figure, two about the cached one, one about a figure that the cache lacks.
    assert (outcome["questions"], outcome["missing"]) == (5, 1)
    assert [bool(row["media"]) for row in rows_of(config)] == [True, True, False, False, True]
    assert set(outcome["metrics"]) == {"aAcc", "fAcc", "qAcc"}
    assert outcome["scored_by"] == BENCHMARKS["hallusionbench"].rule_name


def test_resumed_equals_uninterrupted_and_other_models_are_not_mixed_in(run):
    config = run("mlvu")
    evaluate(config)
    whole = {path.name: path.read_bytes() for path in (config.out / "mlvu").iterdir()}
    with pytest.raises(ValueError, match="--on-existing"):
        evaluate(config)
    answers = config.out / "mlvu/answers.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:3]) + lines[3][:9])
    (config.out / "mlvu/summary.json").unlink()
    evaluate(replace(config, on_existing="resume"))
    again = {path.name: path.read_bytes() for path in (config.out / "mlvu").iterdir()}
    assert again.pop("answers.jsonl").startswith(b"".join(lines[:3])), "answers are not asked again"
    whole.pop("answers.jsonl")
    assert again == whole
    with pytest.raises(ValueError, match="max_new_tokens: 4 there, 5 now"):
        evaluate(replace(config, on_existing="resume", max_new_tokens=5))
    # Starting over, the old numbers are gone at once: a run that fails leaves none behind.
    with pytest.raises(RuntimeError, match="not one of the media"):
        evaluate(replace(config, media_prefix="elsewhere/", on_existing="overwrite"))
    assert not (config.out / "mlvu/summary.json").exists()
    assert not (config.out / "mlvu/results.jsonl").exists()


@pytest.mark.ray
def test_ray_workers_answer_a_benchmark_as_this_process_does(run, ray_cluster):
    config = run("mlvu")
    evaluate(config)
    parallel = replace(config, out=config.out.with_name("parallel"), num_workers=2)
    evaluate(parallel)
    assert rows_of(parallel) == rows_of(config)


def put_media(config: EvaluateConfig) -> None:
    """Files of the right names; what answers here never opens them."""
    assert config.media_root is not None
    for item in BENCHMARKS[config.benchmark].load(config.data[0], LoadOptions(media=config.media_root, num_frames=4)):
        for medium in item.media:
            path = config.media_root / medium.path.replace(".*", ".mkv")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def knows_everything(config: EvaluateConfig) -> Callable[[dict[str, Any]], str]:
    options = LoadOptions(media=config.media_root, num_frames=config.num_frames)
    right = {item.prompt: item.answers for item in BENCHMARKS[config.benchmark].load(config.data[0], options)}
    return lambda body: (right[text_of(body)] or ("",))[0]


@pytest.mark.parametrize("name", ["activitynet-qa", "video-mme-subtitles", "mvbench", "pope", "mme", "textvqa"])
def test_an_endpoint_is_asked_with_the_published_media(name, run, tmp_path):
    config = run(name, endpoint="http://to.be.replaced", num_frames=6)
    put_media(config)
    with openai_server(knows_everything(config)) as server:
        outcome = evaluate(replace(config, endpoint=server.url))
    assert next(iter(outcome["metrics"].values())) == {"mme": 2800}.get(name, 100)
    assert len(server.bodies) == outcome["questions"], "every question once"
    kind = BENCHMARKS[name].kind
    for body in server.bodies:
        *media, text = body["messages"][0]["content"]
        assert text["type"] == "text"
        assert body["temperature"] == 0
        assert body["max_tokens"] == 4
        assert body.get("media_io_kwargs") == ({"video": {"num_frames": 6}} if kind == "video" else None)
        for part in media:
            url = part[f"{kind}_url"]["url"]
            assert url.startswith(tmp_path.as_uri())
            assert Path(url.removeprefix("file://")).is_file()


def test_what_an_endpoint_cannot_decode_is_missing_and_its_errors_stop_the_run(run):
    config = run("longvideobench", endpoint="http://to.be.replaced", batch_size=1)
    put_media(config)
    replies: list[Any] = [JSONResponse({"error": {}}, 503, {"Retry-After": "0"}), JSONResponse({"error": {}}, 422), "A"]
    with openai_server(lambda body: replies.pop(0)) as server:
        config = replace(config, endpoint=server.url)
        outcome = evaluate(config)
        assert (outcome["missing"], outcome["metrics"]["accuracy"]) == (1, 50)
        # Asked again on a resume: the file may have been repaired. Then the endpoint breaks, and later it is back.
        replies += [JSONResponse({"error": {"message": "no"}}, 500), "C"]
        with pytest.raises(ValueError, match="answered 500"):
            evaluate(replace(config, on_existing="resume"))
        assert evaluate(replace(config, on_existing="resume"))["metrics"]["accuracy"] == 100
    assert len(server.bodies) == 5


def test_a_folder_without_the_media_is_no_result(run):
    config = run("longvideobench", endpoint="http://127.0.0.1:9/v1")
    assert config.media_root is not None
    config.media_root.mkdir()
    with pytest.raises(RuntimeError, match=r"--media-root .* videos/\{video_path\}"):
        evaluate(config)


def test_open_answers_are_judged_by_the_published_protocol(run):
    config = run("msvd-qa", endpoint="http://to.be.replaced", batch_size=1)
    put_media(config)
    answers = {"what is chewing on a nut?": "a small animal", "who is eating?": "nobody", "what moves?": ""}
    verdicts = {
        "a small animal": "{'pred': 'yes', 'score': 4}",
        "nobody": "```\n{'pred': 'no', 'score': 1}```",
    }
    unread = ["I would say so"]

    def judge(body: dict[str, Any]) -> str:
        if unread:
            return unread.pop()
        return next(reply for said, reply in verdicts.items() if f"Predicted Answer: {said}\n" in text_of(body))

    with openai_server(lambda body: answers[text_of(body).split("\n")[0]]) as server, openai_server(judge) as judges:
        config = replace(config, endpoint=server.url)
        without = evaluate(config)
        assert without["metrics"] == {"exact match": 0}
        assert "cannot be compared" in (config.out / "msvd-qa/summary.md").read_text()
        judged = replace(config, on_existing="resume", judge_url=judges.url, judge_model="judge", judge_workers=1)
        outcome = evaluate(judged)
        # The empty answer is wrong without asking.
        assert outcome["metrics"] == {"accuracy": pytest.approx(100 / 3), "score": pytest.approx(5 / 3)}
        evaluate(judged)
        assert len(server.bodies) == 3, "nothing is answered twice"
        assert len(judges.bodies) == 3, "nothing is judged twice"
    assert [body["temperature"] for body in judges.bodies] == [0, 0.5, 0]
    assert judges.bodies[0]["messages"] == VIDEO_CHATGPT.messages(
        "what is chewing on a nut?", "chipmunk", "a small animal"
    )
    assert [row["by"] for row in rows_of(config)] == ["judge", "judge", "empty answer"]
    record = summary_of(config)["judge"]
    assert (record["protocol"], record["protocol_version"]) == ("Video-ChatGPT", VIDEO_CHATGPT.version)
    assert (record["model"], record["models_as_reported"]) == ("judge", ["judge-2026-01-01"])
    assert "judge (protocol Video-ChatGPT" in (config.out / "tables.md").read_text()


def test_a_judge_that_fails_is_an_error_and_the_rest_is_judged_later(run):
    config = run("msrvtt-qa", endpoint="http://to.be.replaced")
    put_media(config)
    broken = True

    def judge(body: dict[str, Any]) -> Any:
        return "no idea" if broken and "Correct Answer: two" in text_of(body) else "{'pred': 'yes', 'score': 5}"

    with openai_server(lambda body: "something") as server, openai_server(judge) as judges:
        config = replace(config, endpoint=server.url, judge_url=judges.url, judge_model="judge")
        with pytest.raises(RuntimeError, match=r"no verdict from judge .* got 'no idea'.* 1 of 2 answers are judged"):
            evaluate(config)
        assert not (config.out / "msrvtt-qa/summary.json").exists(), "a score that lacks judgements is no score"
        assert len(judges.bodies) == 1 + 5, "tried five times"
        broken = False
        outcome = evaluate(replace(config, on_existing="resume"))
        assert outcome["metrics"] == {"accuracy": 100, "score": 5}
        assert len(judges.bodies) == 6 + 1, "only what was left"
        assert len(server.bodies) == 2
        # Another judge's verdicts are its own.
        evaluate(replace(config, on_existing="resume", judge_model="other"))
        assert len(judges.bodies) == 7 + 2
    assert len(list((config.out / "msrvtt-qa").glob("judgements-*.jsonl"))) == 2


def test_a_judge_is_patient_with_a_busy_server_but_not_with_a_refusal(monkeypatch):
    replies: list[Any] = [JSONResponse({}, 429, {"Retry-After": "0"}), JSONResponse({}, 500), "x", "0.7"]
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with ExitStack() as stack, openai_server(lambda body: replies.pop(0)) as server:
        judge = stack.enter_context(closing(Judge(server.url, "judge", MM_VET, key_env="JUDGE_KEY", wait_s=0)))
        judgement = judge.judge("v1", question="x ?", answer="1<AND>2", prediction="3")
        assert (judgement.score, judgement.correct, judgement.tries) == (0.7, None, 4)
        assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}
        asked = [text_of(body) for body in server.bodies]
        assert asked[0].endswith("\nx ? | 1 <AND> 2 | 3 | ")
        assert asked[3] == asked[0] + "\nPredict the correctness of the answer (digit): "
        replies.append(JSONResponse({"error": "no such key"}, 401))
        with pytest.raises(JudgeError, match="401"):
            judge.judge("v1", question="x ?", answer="1", prediction="3")
        assert len(server.bodies) == 5, "asked once"
    with (
        closing(Judge(server.url, "judge", MM_VET, wait_s=0)) as judge,
        pytest.raises(JudgeError, match="ConnectError"),
    ):
        judge.judge("v1", question="?", answer="1", prediction="3")
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ValueError, match="JUDGE_KEY"):
        Judge(server.url, "judge", MM_VET, key_env="JUDGE_KEY")


def test_tables_hold_every_benchmark_that_ran(run):
    for name in ("mlvu", "egoschema", "msvd-qa"):
        config = run(name, endpoint="http://to.be.replaced", num_frames=6)
        put_media(config)
        with openai_server(knows_everything(config)) as server:
            # One name for all, as one server would have.
            evaluate(replace(config, endpoint=server.url, max_questions=2))
    text = (config.out / "tables.md").read_text()
    of_paper = next(line for line in text.splitlines() if line.startswith("| LinVT-Qwen2-VL (7B), paper | 80.2 |"))
    assert of_paper.count("|") == 2 + 8, "accuracy and score of four sets"
    assert "| 69.3 |" in text
    ours = [line for line in text.splitlines() if line.startswith("| linvt at http://127.0.0.1:")]
    # Two questions are not the whole benchmark; without a judge it is not the judge's number.
    assert any("| 100.0*† [34.2, 100.0] |" in line for line in ours)
    assert any("| 100.0† [" in line for line in ours)
    assert json.loads((config.out / "egoschema/submission.json").read_text()) == {"u1": 3, "u2": -1}


def test_what_does_not_fit_is_refused(run, tmp_path, model, cache):
    with pytest.raises(ValueError, match="valid: qa, msvd-qa, "):
        EvaluateConfig(benchmark="mvbench2", data=(tmp_path,), out=tmp_path, model=model, cache=cache)
    with pytest.raises(ValueError, match="--data FOLDER"):
        EvaluateConfig(benchmark="mvbench", out=tmp_path, model=model, cache=cache)
    with pytest.raises(ValueError, match="--methods"):
        run("mvbench", methods=("linvt",))
    with pytest.raises(ValueError, match="scored by a rule"):
        run("mvbench", judge_url="http://x", judge_model="y")
    with pytest.raises(ValueError, match="--judge-model"):
        run("msvd-qa", judge_url="http://x")
    with pytest.raises(ValueError, match="give --data"):
        EvaluateConfig(out=tmp_path, model=model, cache=cache)
