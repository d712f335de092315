"""The endpoint as its users meet it: a real Ray Serve application, asked by the official OpenAI client."""

import base64
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch

from linvt.backbones import load_backbone
from linvt.evaluation.config import EvaluateConfig
from linvt.evaluation.results import read_results
from linvt.serving.config import ServeConfig
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVT, LinVTConfig
from pipelines.evaluate import evaluate
from pipelines.serve import running
from tests.media import write_image, write_video

pytestmark = pytest.mark.ray

KEY = "a secret of this test"
MAX_MEDIA_MB = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_llava) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LinVTConfig(hidden_size=64, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=200)
    directory = tmp_path_factory.mktemp("model")
    VideoLLM(load_backbone(tiny_llava, parts={"llm"}), LinVT(config)).save_pretrained(directory)
    return directory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("media")
    write_video(directory / "video.mp4", shot_lengths=(24, 24), fps=24)
    whole = write_video(directory / "other.mp4", seed=1).read_bytes()
    write_image(directory / "image.png")
    (directory / "broken.mp4").write_bytes(whole[:64] + bytes(len(whole) - 64))
    (directory / "large.mp4").write_bytes(whole + bytes(MAX_MEDIA_MB * 1024**2))
    (directory.parent / "outside.mp4").write_bytes(whole)
    return directory


@pytest.fixture(scope="module")
def url(model, media, ray_cluster) -> Iterator[str]:
    os.environ["LINVT_TEST_KEY"] = KEY
    config = ServeConfig(
        model=model,
        port=free_port(),
        api_key_env="LINVT_TEST_KEY",
        num_frames=8,
        max_frames=16,
        detector="none",
        max_new_tokens=24,
        allowed_media_dir=(media,),
        max_media_mb=MAX_MEDIA_MB,
        max_duration_s=60,
        max_batch=1,
        max_queued_requests=1,
        upload_timeout_s=2,
    )
    with running(config) as url:
        yield url
    del os.environ["LINVT_TEST_KEY"]


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


EVIDENCE = {"linvt": {"evidence": True}}


def ask(client: openai.OpenAI, url: str, text: str = "what moves ?", *, part: str = "video_url", **options: Any) -> Any:
    content: Any = [{"type": part, part: {"url": url}}, {"type": "text", "text": text}]
    return client.chat.completions.create(
        model="linvt", messages=[{"role": "user", "content": content}], temperature=0, **options
    )


def health(url: str) -> dict[str, Any]:
    return httpx.get(f"{url.removesuffix('/v1')}/health").json()


def test_models_and_health(client, url):
    assert [model.id for model in client.models.list()] == ["linvt"]
    assert client.models.retrieve("linvt").owned_by == "linvt"
    assert health(url)["status"] == "ok"


def test_the_second_question_about_a_video_skips_decoding_and_encoding(client, url, media):
    misses = health(url)["cache"]["misses"]
    first = ask(client, (media / "video.mp4").as_uri(), extra_body=EVIDENCE)
    second = ask(client, (media / "video.mp4").as_uri(), "what color is it ?", extra_body=EVIDENCE)
    (one,), (two,) = first.linvt["videos"], second.linvt["videos"]
    assert (one["from_cache"], two["from_cache"]) == (False, True)
    assert health(url)["cache"]["misses"] == misses + 1
    assert first.choices[0].message.content
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    for video in (one, two):
        weights = [moment["weight"] for moment in video["evidence"]]
        times_s = [moment["timestamp_s"] for moment in video["evidence"]]
        assert len(weights) == 8
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        assert times_s == sorted(times_s)
        assert times_s[-1] < video["duration_s"] == pytest.approx(2.0, abs=0.1)
    # The same bytes by another way are the same video.
    encoded = base64.b64encode((media / "video.mp4").read_bytes()).decode()
    again = ask(client, f"data:video/mp4;base64,{encoded}")
    assert again.linvt["videos"][0]["from_cache"]
    assert "evidence" not in again.linvt["videos"][0], "unasked for"
    assert again.choices[0].message.content == first.choices[0].message.content


def test_frames_as_lmms_eval_and_vllm_clients_ask_for_them(client, media):
    video = (media / "video.mp4").as_uri()
    for options, count in (({"num_frames": 5}, 5), ({"fps": 2}, 4), ({"fps": 1000}, 16)):
        answer = ask(client, video, extra_body={"media_io_kwargs": {"video": options}} | EVIDENCE)
        assert len(answer.linvt["videos"][0]["evidence"]) == count


def test_a_stream_says_the_same_as_the_whole(client, media):
    video = (media / "video.mp4").as_uri()
    whole = ask(client, video, extra_body=EVIDENCE)
    chunks = list(ask(client, video, stream=True, stream_options={"include_usage": True}, extra_body=EVIDENCE))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks[1:-2])
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].linvt["videos"][0]["evidence"] == whole.linvt["videos"][0]["evidence"]


def test_a_stream_ends_with_done(url, media):
    part = {"type": "video_url", "video_url": {"url": (media / "video.mp4").as_uri()}}
    body = {"model": "linvt", "messages": [{"role": "user", "content": [part]}], "stream": True}
    response = httpx.post(f"{url}/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
    events = response.text.split("\n\n")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] for event in events[:-2])


def test_an_image_needs_no_video(client, media):
    answer = ask(client, (media / "image.png").as_uri(), part="image_url")
    assert answer.choices[0].message.content
    assert answer.linvt["videos"] == []
    text = client.chat.completions.create(model="linvt", messages=[{"role": "user", "content": "what is red ?"}])
    assert text.usage.prompt_tokens < answer.usage.prompt_tokens


@pytest.mark.parametrize(
    ("address", "part", "error_class", "code"),
    [
        ("ftp://example.com/a.mp4", "video_url", openai.BadRequestError, "bad_media_url"),
        ("data:video/mp4;base64,@", "video_url", openai.BadRequestError, "bad_media_url"),
        ("file://{media}/../outside.mp4", "video_url", openai.PermissionDeniedError, "media_not_allowed"),
        ("http://169.254.169.254/latest", "video_url", openai.PermissionDeniedError, "media_not_allowed"),
        ("http://127.0.0.1:1/a.mp4", "video_url", openai.PermissionDeniedError, "media_not_allowed"),
        ("file://{media}/missing.mp4", "video_url", openai.UnprocessableEntityError, "media_not_found"),
        ("file://{media}/broken.mp4", "video_url", openai.UnprocessableEntityError, "media_not_decodable"),
        ("file://{media}/video.mp4", "image_url", openai.UnprocessableEntityError, "media_not_decodable"),
        ("file://{media}/large.mp4", "video_url", openai.APIStatusError, "media_too_large"),
    ],
)
def test_bad_media_are_the_clients_errors(client, media, address, part, error_class, code):
    with pytest.raises(error_class) as caught:
        ask(client, address.format(media=media), part=part)
    assert caught.value.code == code
    assert caught.value.body["type"] in ("invalid_request_error", "permission_error")
    assert 400 <= caught.value.status_code < 500
    assert ask(client, (media / "video.mp4").as_uri()).linvt["videos"][0]["from_cache"], "the replica lives on"


def test_a_decoder_that_dies_is_the_videos_fault_and_nobody_elses(client, media):
    """The process that decodes is killed, as a bug in a codec or the kernel's memory killer would do it."""
    # Long enough that no decoder is done with it before the killer has found the process.
    slow = write_video(media / "slow.mp4", shot_lengths=(96,) * 140, fps=240)
    killed: list[int] = []
    answered = threading.Event()

    def kill() -> None:
        mine = psutil.Process()
        while not killed and not answered.is_set():
            for process in mine.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "linvt.extraction.decode_process" in process.cmdline():
                        process.kill()
                        killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(openai.UnprocessableEntityError, match="DecoderCrashed"):
            ask(client, slow.as_uri())
    finally:
        answered.set()
        killer.join()
    assert killed
    assert ask(client, (media / "video.mp4").as_uri()).linvt["videos"][0]["from_cache"]
    assert not ask(client, slow.as_uri()).linvt["videos"][0]["from_cache"], "no failure is remembered"


def test_what_is_wrong_with_a_request(client, media):
    video = (media / "video.mp4").as_uri()
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, video, n=17)
    assert caught.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="at most 16"):
        ask(client, video, extra_body={"media_io_kwargs": {"video": {"num_frames": 17}}})
    with pytest.raises(openai.BadRequestError, match="media slots"):
        ask(client, video, "<image> ?", stream=True)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="linvt", input="x")


def test_the_key_is_asked_for(url, media):
    for header in ("Bearer wrong", "Bearer", f"Basic {KEY}", KEY):
        response = httpx.post(f"{url}/chat/completions", json={}, headers={"Authorization": header})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{url}/models").status_code == 401


def test_evaluation_through_the_endpoint(client, url, media, tmp_path, monkeypatch):
    """The same rows, asked over HTTP by a client that waits its turn; a broken video is missing, not wrong."""
    monkeypatch.setenv("LINVT_TEST_KEY", KEY)
    turns = [{"question": "what moves ?", "answer": "a box"}, {"question": "what color is it ?", "answer": "red"}]
    rows = [{"media": name, "qa": turns} for name in ("video.mp4", "other.mp4", "broken.mp4")]
    rows.append({"media": "image.png", "kind": "image", "qa": turns[:1]})
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = evaluate(
        EvaluateConfig(
            endpoint=url,
            api_key_env="LINVT_TEST_KEY",
            media_root=media,
            data=(tmp_path / "test.jsonl",),
            out=tmp_path / "out",
            max_new_tokens=6,
            batch_size=6,
        )
    )
    assert (outcome["answers"], outcome["missing"]) == (7, 2)
    assert set(outcome["accuracy"]) == {"linvt", "image"}
    found = {result.key: result.prediction for result in read_results(tmp_path / "out" / "results.jsonl")}
    assert found["linvt", "broken.mp4#1"] is None
    for name in ("video.mp4", "other.mp4"):
        for i, turn in enumerate(turns):
            answer = ask(client, (media / name).as_uri(), turn["question"], max_tokens=6)
            assert found["linvt", f"{name}#{i}"] == answer.choices[0].message.content


def test_a_full_queue_says_503_and_when_to_come_back(url, client, media):
    """Two may be in work; of six that come at once some are told to wait, and the openai client's retries get in."""
    body = {
        "model": "linvt",
        "messages": [{"role": "user", "content": "repeat : red"}],
        "max_tokens": 24,
        "temperature": 2,
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    start = threading.Barrier(6)
    answers: list[httpx.Response] = []

    def post() -> None:
        with httpx.Client(timeout=60) as http:
            start.wait()
            answers.append(http.post(f"{url}/chat/completions", json=body, headers=headers))

    threads = [threading.Thread(target=post) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(answers) == 6
    assert refused
    assert {answer.status_code for answer in answers} == {200, 503}
    assert refused[0].headers["Retry-After"] == "1"
    assert refused[0].json()["error"]["code"] == "overloaded"
    patient = client.with_options(max_retries=5)
    assert ask(patient, (media / "video.mp4").as_uri()).choices[0].message.content
    assert health(url)["in_work"] == 0


def test_a_client_that_leaves_gives_its_place_back(url, client, media):
    with ask(client, (media / "video.mp4").as_uri(), stream=True) as stream:
        next(iter(stream))
    patient = client.with_options(max_retries=5)
    for _ in range(3):
        assert ask(patient, (media / "video.mp4").as_uri()).usage
    assert health(url)["in_work"] <= 1


def test_a_taken_port_and_a_missing_key_are_told_at_once(tmp_path, url, model):
    port = int(url.split(":")[2].split("/")[0])
    with pytest.raises(ValueError, match="choose another --port"), running(ServeConfig(model=model, port=port)):
        pass
    unset = ServeConfig(model=model, port=free_port(), api_key_env="LINVT_TEST_UNSET")
    with pytest.raises(ValueError, match="LINVT_TEST_UNSET"), running(unset):
        pass
    with pytest.raises(ValueError, match=r"no config\.json"), running(ServeConfig(model=tmp_path, port=free_port())):
        pass


def test_other_machines_need_a_key():
    with pytest.raises(ValueError, match="--api-key-env"):
        ServeConfig(model=Path("m"), host="0.0.0.0")
    assert ServeConfig(model=Path("m"), host="0.0.0.0", allow_anonymous=True).host == "0.0.0.0"
