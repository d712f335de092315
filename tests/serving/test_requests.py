"""Requests as clients really send them, and answers that clients can read."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from linvt.serving.errors import RequestError
from linvt.serving.requests import parse_request
from linvt.serving.responses import (
    DONE,
    ChoiceReply,
    Completion,
    LogProb,
    Moment,
    Piece,
    Reply,
    Usage,
    top_moments,
    video_entry,
    video_evidence,
)


def _body(**changes: Any) -> dict[str, Any]:
    video = {"type": "video_url", "video_url": {"url": "file:///a.mp4"}}
    content = [video, {"type": "text", "text": "what happens ?"}]
    return {"model": "linvt", "messages": [{"role": "user", "content": content}], **changes}


def _parse(body: Any):
    return parse_request(body, model_names=("linvt",))


def test_the_request_that_lmms_eval_sends():
    request = _parse(_body(media_io_kwargs={"video": {"num_frames": 8}}, max_tokens=16, temperature=0, user="x"))
    assert request.video_options.num_frames == 8
    assert [part.type for part in request.messages[0].parts] == ["video_url", "text"]


def test_plain_text_and_several_turns():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one", "name": "me"},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "three"},
    ]
    request = _parse({"model": "linvt", "messages": messages, "stop": "."})
    assert [message.parts[0].text for message in request.messages] == ["be brief", "one", "two", "three"]
    assert request.stops == ["."]


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"model": "gpt-4"}, 404, None),
        ({"n": 17}, 400, "n"),
        ({"n": 2, "linvt": {"evidence": True}}, 400, "n"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"top_p": 0.0}, 400, "top_p"),
        ({"min_p": 1.5}, 400, "min_p"),
        ({"presence_penalty": 3.0}, 400, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, 400, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, 400, "repetition_penalty"),
        ({"seed": 2**63}, 400, "seed"),
        ({"max_tokens": "3"}, 400, "max_tokens"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"model": "\ud800"}, 400, "model"),
        ({"messages": [{"role": "user", "content": "red " * 250_001}]}, 400, "messages"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"messages": []}, 400, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            400,
            "messages.0.content.0",
        ),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, 400, "messages"),
        ({"media_io_kwargs": {"video": {"num_frames": 0}}}, 400, "media_io_kwargs.video.num_frames"),
        ({"media_io_kwargs": {"video": {"num_frames": 8, "fps": 1}}}, 400, "media_io_kwargs.video"),
        ({"media_io_kwargs": {"video": {"fps": float("inf")}}}, 400, "media_io_kwargs.video.fps"),
    ],
)
def test_refusals_name_the_field(changes, status, param):
    with pytest.raises(RequestError) as caught:
        _parse(_body(**changes))
    assert caught.value.status == status
    assert caught.value.param == param


def test_media_belongs_to_the_user():
    video = {"type": "video_url", "video_url": {"url": "file:///a.mp4"}}
    messages = [{"role": "system", "content": [video]}, {"role": "user", "content": "q"}]
    with pytest.raises(RequestError, match="user messages"):
        _parse({"model": "linvt", "messages": messages})


@pytest.mark.parametrize("body", [None, [], "text", 3])
def test_a_body_that_is_no_object(body):
    with pytest.raises(RequestError, match="400"):
        _parse(body)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"), (503, "server_error")],
)
def test_error_bodies(status, kind):
    error = RequestError(status, "m", code="c", param="p", retry_after_s=3 if status == 503 else None)
    assert error.body() == {"error": {"message": "m", "type": kind, "param": "p", "code": "c"}}
    assert error.headers().get("Retry-After") == ("3" if status == 503 else None)


def _evidence() -> dict[str, Any]:
    moments = [Moment(timestamp_s=t, weight=w) for t, w in ((0.0, 0.2), (1.0, 0.5), (2.0, 0.3))]
    entry = video_entry(sha256="00", duration_s=3.0, shots_s=[(0.0, 3.0)], from_cache=False)
    return entry | video_evidence(moments, shot_weights=[1.0], num_top_moments=2, answer_tokens=None, evidence_map=None)


def _answer(text: str, finish_reason: Any, usage: Usage) -> Reply:
    log_probs = [LogProb(token=text, log_prob=-float("inf"), alternatives=(("no", -2.0),))]
    choice = ChoiceReply(text=text, finish_reason=finish_reason, log_probs=log_probs)
    return Reply(choices=[choice], usage=usage, videos=[_evidence()], from_cache=[False])


def test_openai_types_read_the_answer_and_keep_the_evidence():
    usage = Usage(prompt_tokens=5, completion_tokens=2)
    body = Completion(model="linvt").whole(_answer("yes", "stop", usage))
    parsed = ChatCompletion.model_validate(json.loads(json.dumps(body)), strict=True)
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 7
    assert parsed.model_extra is not None
    (video,) = parsed.model_extra["linvt"]["videos"]
    assert [moment["timestamp_s"] for moment in video["evidence"]] == [0.0, 1.0, 2.0]
    assert [moment["timestamp_s"] for moment in video["top_moments"]] == [1.0, 2.0]


def test_openai_types_read_the_stream():
    completion = Completion(model="linvt")
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    events = [
        completion.first_chunks(1),
        completion.text_chunk(Piece(index=0, text="line\nbreak", log_probs=[LogProb(token="line", log_prob=-1.0)])),
        completion.last_chunks(_answer("line\nbreak", "length", usage)),
        completion.usage_chunk(usage),
    ]
    chunks = [ChatCompletionChunk.model_validate(json.loads(event[len("data: ") :]), strict=True) for event in events]
    assert all(event.endswith("\n\n") and event.count("\n") == 2 for event in [*events, DONE])
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "line\nbreak"
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[2].choices[0].finish_reason == "length"
    assert chunks[3].choices == []


def test_top_moments_break_ties_by_time():
    moments = [Moment(timestamp_s=t, weight=0.25) for t in (3.0, 1.0, 2.0, 0.0)]
    assert [moment.timestamp_s for moment in top_moments(moments, 2)] == [0.0, 1.0]
    assert len(top_moments(moments, 9)) == 4
