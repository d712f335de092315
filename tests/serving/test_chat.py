"""Answers of a tiny real model: text, stops, streams, evidence."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from linvt.answering import fill_slots, frame_token_weights
from linvt.backbones import load_backbone
from linvt.serving.batching import Batcher
from linvt.serving.chat import Answering, MediaPart, conversation
from linvt.serving.errors import RequestError
from linvt.serving.requests import parse_request
from linvt.serving.responses import Piece
from linvt.shards import CachedVideo
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVT, LinVTConfig
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> VideoLLM:
    torch.set_num_threads(1)
    directory = save_tiny_llava(tmp_path_factory.mktemp("models") / "llava")
    backbone = load_backbone(str(directory))
    torch.manual_seed(0)
    config = LinVTConfig(hidden_size=64, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=40)
    return VideoLLM(backbone, LinVT(config)).eval().requires_grad_(False)


def _video(*, num_frames: int = 5, kind: Any = "video", seed: int = 0) -> CachedVideo:
    generator = torch.Generator().manual_seed(seed)
    return CachedVideo(
        key=f"{seed:032x}",
        video_id="v.mp4",
        uri="v.mp4",
        sha256="00",
        kind=kind,
        tokens=torch.randn(num_frames, 16, 64, generator=generator).bfloat16(),
        grid=(4, 4),
        timestamps_s=np.arange(num_frames, dtype=np.float64),
        duration_s=float(num_frames),
        shots=np.array([[0.0, 2.0], [2.0, float(num_frames)]]),
        shot_index=np.array([0, 0, *[1] * num_frames][:num_frames]),
        feature_id="f",
    )


def _request(content: Any = None, **fields: Any):
    video = {"type": "video_url", "video_url": {"url": "file:///v.mp4"}}
    content = content or [video, {"type": "text", "text": "what color is the ball ?"}]
    body = {"model": "linvt", "messages": [{"role": "user", "content": content}], **fields}
    return parse_request(body, model_names=("linvt",))


def _reply(llm: VideoLLM, request: Any, media: list[CachedVideo], *, max_new_tokens: int = 12):
    """The reply, and the text of its first choice as it came."""
    pieces: list[Piece] = []
    answering = Answering(
        llm, request, [(item, False) for item in media], max_new_tokens=max_new_tokens, emit=pieces.append
    )
    with contextlib.closing(Batcher(llm.backbone, max_rows=4)) as batcher:
        for future in [batcher.submit(row) for row in answering.rows]:
            future.result()
    return answering.reply(), [piece.text for piece in pieces if piece.index == 0]


def test_same_answer_as_the_library(llm):
    expected = llm.answer(_video(), "what color is the ball ?", max_new_tokens=12)
    reply, pieces = _reply(llm, _request(), [_video()])
    assert reply.choices[0].text == expected.text == "".join(pieces)
    assert reply.choices[0].text
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
        expected.num_prompt_tokens,
        expected.num_answer_tokens,
    )


def test_evidence_is_a_distribution_over_frames_in_time(llm):
    request = _request(linvt={"evidence": True, "evidence_map": True, "top_moments": 2})
    reply, _ = _reply(llm, request, [_video()])
    (entry,) = reply.videos
    weights = [moment["weight"] for moment in entry["evidence"]]
    assert [moment["timestamp_s"] for moment in entry["evidence"]] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert [moment["weight"] for moment in entry["top_moments"]] == sorted(weights, reverse=True)[:2]
    assert np.array(entry["evidence_map"]["weights"]).sum(-1) == pytest.approx(weights)
    assert entry["evidence_map"]["grid"] == (4, 4)


def test_frame_tokens_that_linvt_left_out_have_no_weight(llm):
    video = _video()
    messages, _ = conversation(_request())
    slots = fill_slots(llm, messages, [video], return_maps=True)
    ids = llm.backbone.text_ids("red ball")
    (weights,) = frame_token_weights(llm, messages, slots, [video], ids)
    assert slots[0].map is not None
    assert weights is not None
    used = slots[0].map.sum(0) > 0
    assert used.sum() == 40  # top_k of the 80 frame tokens
    assert bool((weights.flatten()[~used] == 0).all())
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert (weights > 0).sum() > 5


def test_evidence_per_answer_token_and_per_shot(llm):
    plain, _ = _reply(llm, _request(max_tokens=4, linvt={"evidence": True}), [_video()])
    reply, _ = _reply(llm, _request(max_tokens=4, linvt={"evidence_per_token": True}), [_video()])
    (entry,) = reply.videos
    assert "answer_tokens" not in plain.videos[0]
    weights = [moment["weight"] for moment in entry["evidence"]]
    assert weights == pytest.approx([moment["weight"] for moment in plain.videos[0]["evidence"]], abs=1e-4)
    assert entry["shot_weights"] == pytest.approx([sum(weights[:2]), sum(weights[2:])])
    assert "".join(token["text"] for token in entry["answer_tokens"]) == reply.choices[0].text.replace(" ", "")
    per_token = [[moment["weight"] for moment in token["evidence"]] for token in entry["answer_tokens"]]
    assert len(per_token) == reply.usage.completion_tokens == 4
    assert [sum(row) for row in per_token] == pytest.approx([1] * 4, abs=1e-5)
    assert per_token[0] != pytest.approx(per_token[1], abs=1e-3)


def test_evidence_is_computed_only_when_asked_for(llm, monkeypatch):
    monkeypatch.setattr("linvt.serving.chat.frame_token_weights", lambda *_, **__: pytest.fail("it was computed"))
    reply, _ = _reply(llm, _request(), [_video()])
    monkeypatch.undo()
    assert set(reply.videos[0]) == {"sha256", "duration_s", "shots_s", "from_cache"}
    assert reply.choices[0].text == _reply(llm, _request(linvt={"evidence": True}), [_video()])[0].choices[0].text


def test_text_media_and_turns_in_any_order(llm):
    url = {"url": "x"}
    content = [
        {"type": "text", "text": "first"},
        {"type": "image_url", "image_url": url},
        {"type": "video_url", "video_url": url},
        {"type": "text", "text": "what next ?"},
        {"type": "image_url", "image_url": url},
    ]
    messages, parts = conversation(_request(content))
    assert parts == [MediaPart(kind=kind, url="x") for kind in ("image", "video", "image")]
    assert [part["type"] for part in messages[0]["content"]] == ["text", "image", "video", "text", "image"]
    media = [_video(kind="image", num_frames=1), _video(), _video(kind="image", num_frames=1, seed=2)]
    reply, _ = _reply(llm, _request(content), media)
    assert len(reply.videos) == 1  # images have no moments
    assert reply.usage.prompt_tokens > 16 + 6 + 16


def test_an_image_is_answered_as_by_the_image_llm_itself(llm):
    """Through the model's own processor, splicing and generate, which know nothing of LinVT."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    tokens = llm.backbone.encode_frames(pixels[None])
    image = CachedVideo(
        **{name: getattr(_video(kind="image", num_frames=1), name) for name in CachedVideo.__slots__}
        | {"tokens": tokens.tokens, "grid": tokens.grid}
    )
    content = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "what color is it ?"}]
    reply, _ = _reply(llm, _request(content), [image])
    shown = [{"role": "user", "content": [{"type": "image"}, content[1]]}]
    processor, model = llm.backbone.processor, llm.backbone.model
    prompt = processor.apply_chat_template(shown, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[Image.fromarray(pixels)], text=prompt, return_tensors="pt", add_special_tokens=False)
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert reply.choices[0].text == llm.backbone.decode(ids.tolist())


def test_length_and_limits(llm):
    reply, _ = _reply(llm, _request(max_tokens=3), [_video()])
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 3)
    reply, _ = _reply(llm, _request(max_completion_tokens=99, max_tokens=3), [_video()], max_new_tokens=5)
    assert reply.usage.completion_tokens <= 5


def test_stop_sequences_never_show(llm):
    whole = _reply(llm, _request(), [_video()])[0].choices[0].text
    words = whole.split()
    stop = " ".join(words[2:4])
    reply, pieces = _reply(llm, _request(stop=["no such text", stop]), [_video()])
    assert reply.choices[0].text == whole[: whole.index(stop)] == "".join(pieces)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens < 12


def test_sampling_with_a_seed_repeats_and_leaves_the_global_state(llm):
    torch.manual_seed(5)
    expected_state = torch.get_rng_state()
    texts = {_reply(llm, _request(temperature=1.5, seed=7), [_video()])[0].choices[0].text for _ in range(2)}
    assert len(texts) == 1
    others = {_reply(llm, _request(temperature=1.5, seed=seed), [_video()])[0].choices[0].text for seed in range(4)}
    assert len(others) > 1
    assert torch.equal(torch.get_rng_state(), expected_state)


def test_a_cancelled_request_ends_at_the_next_token(llm):
    emitted: list[Piece] = []
    answering = Answering(
        llm,
        _request(),
        [(_video(), False)],
        max_new_tokens=12,
        emit=emitted.append,
        is_cancelled=lambda: bool(emitted),
    )
    with contextlib.closing(Batcher(llm.backbone, max_rows=1)) as batcher:
        assert len(batcher.submit(answering.rows[0]).result().ids) < 12


def test_choices_are_those_of_the_seeds_that_follow(llm):
    reply, _ = _reply(llm, _request(n=3, temperature=1.5, seed=7), [_video()])
    alone = [_reply(llm, _request(temperature=1.5, seed=seed), [_video()])[0] for seed in (7, 8, 9)]
    assert [choice.text for choice in reply.choices] == [one.choices[0].text for one in alone]
    assert len({choice.text for choice in reply.choices}) > 1
    assert reply.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)


def test_log_probabilities_are_the_models_own(llm):
    messages, _ = conversation(_request())
    plain, _ = _reply(llm, _request(max_tokens=5), [_video()])
    reply, _ = _reply(llm, _request(max_tokens=5, logprobs=True, top_logprobs=2), [_video()])
    assert reply.choices[0].text == plain.choices[0].text
    found = reply.choices[0].log_probs
    assert found is not None
    assert "".join(one.token for one in found) == reply.choices[0].text
    ids = llm.backbone.text_ids(reply.choices[0].text)
    tokens = [slot.tokens for slot in fill_slots(llm, messages, [_video()])]
    expected = llm.answer_log_probs(messages, tokens, ids).tolist()
    assert [one.log_prob for one in found] == pytest.approx(expected, abs=1e-4)
    assert [one.alternatives[0] for one in found] == [(one.token, one.log_prob) for one in found]  # it was greedy
    assert all(one.alternatives[1][1] <= one.alternatives[0][1] for one in found)


def test_text_that_imitates_media_is_refused(llm):
    with pytest.raises(RequestError) as caught:
        _reply(llm, _request("<image> what is this ?"), [])
    assert (caught.value.status, caught.value.code) == (400, "bad_conversation")


def test_a_prompt_beyond_the_context_is_refused(llm):
    with pytest.raises(RequestError) as caught:
        _reply(llm, _request("red ball " * 2000), [])
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
