"""Evaluation with a tiny real model: what each method sees, nothing answered twice, nothing lost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from linvt.answering import embed_prompt, fill_slots
from linvt.backbones import load_backbone
from linvt.evaluation.config import METHOD_KINDS, EvaluateConfig
from linvt.evaluation.methods import only_options
from linvt.evaluation.results import Result, read_results
from linvt.lora import add_lora
from linvt.shards import read_cache
from linvt.shards.commit import PendingSample
from linvt.shards.index import write_index
from linvt.shards.sample import SampleInfo
from linvt.shards.storage import open_storage
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVT, LinVTConfig
from pipelines.evaluate import evaluate
from tests.shards.cache_builder import pending_sample, write_one_shard

VIDEOS = {"a.mp4": 3, "b.mp4": 12, "c.mp4": 5}
QUESTIONS = [
    {"question": "what color is the ball ?", "answer": "red", "family": "change", "choices": ["red", "blue"]},
    {"question": "which object moves first ?", "answer": "a box", "family": "order"},
]


def _image_sample(video_id: str, tokens: torch.Tensor, *, slot: int) -> PendingSample:
    sample = pending_sample(video_id, tokens, slot=slot)
    info_json, tokens_bytes = sample.load()
    info = replace(SampleInfo.from_json(info_json), kind="image")
    return replace(sample, kind="image", load=lambda: (info.to_json(), tokens_bytes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    directory = str(tmp_path_factory.mktemp("cache"))
    generator = torch.Generator().manual_seed(0)
    tokens = {video_id: torch.randn(t, 16, 64, generator=generator) for video_id, t in VIDEOS.items()}
    samples = [pending_sample(video_id, tokens[video_id], slot=i) for i, video_id in enumerate(VIDEOS)]
    samples.append(_image_sample("d.png", torch.randn(1, 16, 64, generator=generator), slot=len(samples)))
    storage = open_storage(directory)
    write_index(storage, [write_one_shard(storage, 0, samples)])
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "test.jsonl"
    rows: list[dict[str, Any]] = [{"media": video_id, "qa": QUESTIONS} for video_id in (*VIDEOS, "quarantined.mp4")]
    rows.append({"media": "d.png", "kind": "image", "qa": QUESTIONS[:1]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_llava) -> dict[str, Path]:
    """ "plain" without LoRA, and "tuned": the same LinVT and an adapter that changes the LLM a lot."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("models")
    for name in ("plain", "tuned"):
        backbone = load_backbone(tiny_llava, parts={"llm"})
        torch.manual_seed(0)
        config = LinVTConfig(hidden_size=64, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=60)
        video_tokenizer = LinVT(config)
        if name == "tuned":
            add_lora(backbone, rank=4, alpha=8, dropout=0)
            for parameter_name, parameter in backbone.named_parameters():
                if "lora_" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.5)
        VideoLLM(backbone, video_tokenizer).save_pretrained(directory / name)
    return {name: directory / name for name in ("plain", "tuned")}


@pytest.fixture
def config(tmp_path, cache, data, models) -> EvaluateConfig:
    return EvaluateConfig(
        model=models["plain"],
        cache=cache,
        data=(data,),
        out=tmp_path / "out",
        max_new_tokens=6,
        batch_size=3,
        threads_per_worker=1,
    )


def results_of(config: EvaluateConfig) -> dict[tuple[str, str], Result]:
    results = read_results(config.out / "results.jsonl")
    assert len({result.key for result in results}) == len(results), "answered twice"
    return {result.key: result for result in results}


def predictions_of(config: EvaluateConfig) -> dict[tuple[str, str], str | None]:
    return {key: result.prediction for key, result in results_of(config).items()}


def test_every_pair_is_answered_once_or_told_missing(config):
    outcome = evaluate(config)
    videos = [method for method, kind in METHOD_KINDS.items() if kind == "video"]
    images = [method for method, kind in METHOD_KINDS.items() if kind == "image"]
    assert outcome["questions"] == 9
    assert outcome["answers"] == 8 * len(videos) + len(images) == len(results_of(config))
    assert outcome["missing"] == 2 * len(videos)  # the questions about the video that the cache lacks
    assert set(outcome["accuracy"]) == {*videos, *images}
    assert outcome["chance"] == {"video": 0.5, "image": 0.5}
    summary = json.loads((config.out / "summary.json").read_text())
    linvt = summary["kinds"]["video"]["methods"]["linvt"]
    assert linvt["answered"] + linvt["missing"] == summary["kinds"]["video"]["questions"] == 8
    assert sum(family["total"] for family in linvt["families"].values()) == 6
    assert "| linvt |" in (config.out / "summary.md").read_text()
    assert (config.out / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_methods_see_what_they_say(config, models, cache, tiny_llava):
    evaluate(config)
    found = predictions_of(config)
    llm = VideoLLM.from_pretrained(models["plain"], parts=["llm"])
    opened = read_cache(cache)
    questions = [row["question"] for row in QUESTIONS]
    assert len({prediction for prediction in found.values()}) > 4, "answers that never differ would show nothing"
    for i, question in enumerate(questions):
        texts = {found["text_only", f"{video_id}#{i}"] for video_id in VIDEOS}
        assert len(texts) == 1
        for video_id in VIDEOS:
            video = opened.get(opened.video_ids[video_id])
            assert found["linvt", f"{video_id}#{i}"] == llm.answer(video, question, max_new_tokens=6).text
            # Frames are half a second apart: the one nearest to the middle, the earlier of two.
            middle = [1, 6, 2][list(VIDEOS).index(video_id)]
            frame = replace(video, kind="image", tokens=video.tokens[[middle]], **_one_frame(video, middle))
            assert found["middle_frame", f"{video_id}#{i}"] == llm.answer(frame, question, max_new_tokens=6).text
    image = opened.get(opened.video_ids["d.png"])
    assert found["image", "d.png#0"] == llm.answer(image, questions[0], max_new_tokens=6).text
    assert found["base_image", "d.png#0"] == found["image", "d.png#0"], "without LoRA the two are one model"


def _one_frame(video: Any, i: int) -> dict[str, Any]:
    return {"timestamps_s": video.timestamps_s[[i]], "shot_index": video.shot_index[[i]]}


def test_baselines_are_the_image_llm_before_lora(config, models):
    evaluate(config)
    tuned = replace(config, model=models["tuned"], out=config.out.with_name("tuned"))
    evaluate(tuned)
    before, after = predictions_of(config), predictions_of(tuned)
    baselines = {"text_only", "middle_frame", "uniform_frames", "base_image"}
    assert {key: text for key, text in before.items() if key[0] in baselines} == {
        key: text for key, text in after.items() if key[0] in baselines
    }
    for method in ("linvt", "image"):
        assert any(before[key] != after[key] for key in before if key[0] == method)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_answers_do_not_depend_on_their_batch(config, batch_size):
    evaluate(config)
    other = replace(config, out=config.out.with_name("other"), batch_size=batch_size)
    evaluate(other)
    assert predictions_of(other) == predictions_of(config)


def test_resumed_equals_uninterrupted(config):
    whole = evaluate(config)
    lines = (config.out / "results.jsonl").read_bytes().splitlines(keepends=True)
    summary = (config.out / "summary.json").read_bytes()
    expected = predictions_of(config)

    resumed = replace(config, out=config.out.with_name("resumed"), on_existing="resume", methods=("linvt", "image"))
    evaluate(resumed)  # some of the methods only: a resume may add the others
    kept = b"".join(lines[:7]) + lines[7][:10]
    (resumed.out / "results.jsonl").write_bytes(kept)
    again = evaluate(replace(resumed, methods=None))
    assert predictions_of(resumed) == expected
    assert (resumed.out / "results.jsonl").read_bytes().startswith(b"".join(lines[:7])), "answers are not asked again"
    assert (resumed.out / "summary.json").read_bytes() == summary
    assert again["accuracy"] == whole["accuracy"]

    held = (resumed.out / "results.jsonl").read_bytes()
    evaluate(replace(resumed, methods=None))
    assert (resumed.out / "results.jsonl").read_bytes() == held


def test_results_are_never_mixed_or_lost_by_accident(config, models):
    evaluate(replace(config, methods=("text_only",)))
    with pytest.raises(ValueError, match="--on-existing"):
        evaluate(config)
    with pytest.raises(ValueError, match="model_sha256"):
        evaluate(replace(config, model=models["tuned"], on_existing="resume"))
    with pytest.raises(ValueError, match="max_new_tokens: 6 there, 7 now"):
        evaluate(replace(config, max_new_tokens=7, on_existing="resume"))
    outcome = evaluate(replace(config, model=models["tuned"], methods=("linvt",), on_existing="overwrite"))
    assert list(outcome["accuracy"]) == ["linvt"]
    assert {method for method, _ in results_of(config)} == {"linvt"}


def test_the_first_questions_only(config):
    outcome = evaluate(replace(config, max_questions=2, methods=("linvt", "image")))
    assert (outcome["questions"], outcome["answers"]) == (3, 3)


def test_answers_among_the_choices(config, models, cache):
    """Every method answers one of the options where there are any; likelier first tokens win, as they do freely."""
    evaluate(replace(config, answers="choices"))
    found = results_of(config)
    with_choices = [r for r in found.values() if r.question_id.endswith("#0") and r.prediction is not None]
    assert {result.prediction for result in with_choices} <= {"red", "blue"}
    free = [r for r in found.values() if r.question_id.endswith("#1") and r.prediction is not None]
    assert not {result.prediction for result in free} & {"red", "blue"}
    llm = VideoLLM.from_pretrained(models["plain"], parts=["llm"])
    opened = read_cache(cache)
    question = QUESTIONS[0]["question"]
    for video_id in VIDEOS:
        prompt = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        slots = fill_slots(llm, prompt, [opened.get(opened.video_ids[video_id])])
        embeds = embed_prompt(llm, prompt, slots)[None]
        hidden = llm.backbone.hidden_states(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool))
        logits = llm.backbone.head(hidden[0, -1])
        red, blue = (logits[llm.backbone.text_ids(choice)[0]] for choice in ("red", "blue"))
        assert found["linvt", f"{video_id}#0"].prediction == ("red" if red > blue else "blue")


def test_only_whole_options_can_be_said(models):
    llm = VideoLLM.from_pretrained(models["plain"], parts=["llm"])
    allowed = only_options([[(1, 2), (1, 2, 3), (4,)], None], llm)
    stop = llm.backbone.stop_ids
    assert allowed(0, torch.tensor([])) == [1, 4]
    assert allowed(0, torch.tensor([1])) == [2]
    assert allowed(0, torch.tensor([1, 2])) == sorted({3, *stop})
    assert allowed(0, torch.tensor([1, 2, 3])) == stop
    assert allowed(0, torch.tensor([4, *stop])) == stop, "a row that ended waits for the others"
    assert len(allowed(1, torch.tensor([9]))) > 100


def test_media_names_may_need_a_prefix(config, tmp_path):
    data = tmp_path / "prefix.jsonl"
    data.write_text(json.dumps({"media": "mp4", "qa": QUESTIONS}))
    outcome = evaluate(replace(config, data=(data,), media_prefix="a.", methods=("linvt",)))
    assert outcome["missing"] == 0
    assert {question_id for _, question_id in results_of(config)} == {"a.mp4#0", "a.mp4#1"}


def test_what_cannot_be_asked(config, data, tmp_path):
    captions = tmp_path / "captions.jsonl"
    captions.write_text(json.dumps({"media": "a.mp4", "caption": "a ball"}))
    with pytest.raises(ValueError, match="annotations need `qa`"):
        evaluate(replace(config, data=(captions,)))
    wrong_kind = tmp_path / "kinds.jsonl"
    wrong_kind.write_text(json.dumps({"media": "a.mp4", "kind": "image", "qa": QUESTIONS}))
    with pytest.raises(ValueError, match=r"a\.mp4 was extracted as video"):
        evaluate(replace(config, data=(wrong_kind,)))
    with pytest.raises(ValueError, match="either --model or --endpoint"):
        EvaluateConfig(data=(data,), out=tmp_path)
    with pytest.raises(ValueError, match="--cache"):
        EvaluateConfig(data=(data,), out=tmp_path, model=tmp_path)
    with pytest.raises(ValueError, match="valid: \\['linvt', 'image'\\]"):
        EvaluateConfig(data=(data,), out=tmp_path, endpoint="http://x", media_root=tmp_path, methods=("text_only",))


@pytest.mark.ray
def test_ray_workers_answer_as_this_process_does(config, ray_cluster):
    evaluate(config)
    parallel = replace(config, out=config.out.with_name("parallel"), num_workers=2)
    evaluate(parallel)
    assert predictions_of(parallel) == predictions_of(config)
    assert (parallel.out / "summary.json").read_bytes() == (config.out / "summary.json").read_bytes()
