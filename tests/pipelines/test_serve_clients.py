"""The endpoint under real clients, many of them, and a fuzzer; one that scales, and loses a replica."""

import asyncio
import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from ray import serve

from linvt.serving.config import ServeConfig
from pipelines.serve import running
from tests.media import write_video
from tests.pipelines.endpoints import ask, free_port, question, save_tiny_model

pytestmark = pytest.mark.ray

MAX_TOKENS = 400


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("media")
    for seed in range(4):
        write_video(directory / f"{seed}.mp4", seed=seed)
    return directory


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny_llava, media, ray_cluster) -> Iterator[str]:
    config = ServeConfig(
        model=save_tiny_model(tmp_path_factory.mktemp("model"), tiny_llava),
        port=free_port(),
        num_replicas="1:2",
        scale_up_delay_s=0,
        num_frames=8,
        detector="none",
        max_new_tokens=MAX_TOKENS,
        allowed_media_dir=(media,),
        max_queued_requests=40,
    )
    with running(config) as url:
        yield url


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def health(url: str) -> dict[str, Any]:
    return httpx.get(f"{url.removesuffix('/v1')}/health", timeout=30).json()


def until(condition: Any, *, within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def test_the_openai_client_async_and_in_streams(url, client, media):
    video = (media / "0.mp4").as_uri()
    expected = ask(client, video, max_tokens=12)

    async def scenario() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as asynchronous:
            asked: Any = {"model": "linvt", "messages": question(video), "max_tokens": 12}
            whole, stream = await asyncio.gather(
                asynchronous.chat.completions.create(**asked),
                asynchronous.chat.completions.create(**asked, stream=True, n=2),
            )
            texts = ["", ""]
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            assert [whole.choices[0].message.content, *texts] == [expected.choices[0].message.content] * 3

    asyncio.run(scenario())
    many = ask(client, video, max_tokens=6, n=3, temperature=1.5, seed=1, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in many.choices}) > 1
    for choice in many.choices:
        assert choice.message.content == "".join(token.token for token in choice.logprobs.content)
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_curl(url, media):
    body = {"model": "linvt", "messages": question((media / "0.mp4").as_uri()), "max_tokens": 5, "stream": True}
    command = ["curl", "-sN", "--fail-with-body", f"{url}/chat/completions", "-d", json.dumps(body)]
    told = subprocess.run([*command, "-H", "Content-Type: application/json"], capture_output=True, text=True)
    assert told.returncode == 0
    assert told.stdout.endswith("data: [DONE]\n\n")
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 22
    assert json.loads(refused.stdout)["error"]["code"] == "unsupported_media_type"


def test_without_a_key_other_hosts_names_are_refused(url):
    """A page of evil.example, whose name was made to lead here, would otherwise read this machine's videos."""
    for host, status in (("evil.example", 403), ("[::1", 403), ("localhost:1", 200), ("[::1]:1", 200)):
        response = httpx.get(f"{url}/models", headers={"Host": host})
        assert response.status_code == status, host


def test_the_openapi_page_is_there(url):
    page = httpx.get(f"{url.removesuffix('/v1')}/docs")
    assert page.status_code == 200
    assert "openapi.json" in page.text


def test_a_fuzzer_that_knows_the_schema_finds_no_fault_of_the_server(url):
    """Nothing is answered 500, nor otherwise than `/openapi.json` says."""
    schema = schemathesis.openapi.from_url(f"{url.removesuffix('/v1')}/openapi.json")
    statuses: set[int] = set()
    quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}
    for operation in (found.ok() for found in schema.get_all_operations()):
        examples = 60 if operation.path.endswith("completions") else 10

        @given(case=operation.as_strategy())
        @settings(max_examples=examples, phases=[Phase.explicit, Phase.generate], **quiet)
        def fuzz(case: Any) -> None:
            if isinstance(case.body, dict):
                # The rest is for this model, and short.
                if isinstance(case.body.get("model"), str):
                    case.body["model"] = "linvt"
                case.body.setdefault("max_tokens", 3)
            checks = schemathesis.checks
            response = case.call_and_validate(
                checks=[
                    checks.not_a_server_error,
                    checks.status_code_conformance,
                    checks.content_type_conformance,
                    checks.response_schema_conformance,
                ]
            )
            statuses.add(response.status_code)

        fuzz()
    assert {200, 400} <= statuses


def test_a_client_that_leaves_ends_its_generation(url, client, media):
    until(lambda: health(url)["replica"]["rows"] == 0)
    before = health(url)["replica"]["tokens"]
    with ask(client, (media / "0.mp4").as_uri(), stream=True, max_tokens=MAX_TOKENS, temperature=1.0) as stream:
        next(iter(stream))
    until(lambda: health(url)["replica"]["rows"] == 0)
    assert health(url)["replica"]["tokens"] - before < MAX_TOKENS - 50
    with contextlib.suppress(httpx.ReadTimeout):
        body = {"model": "linvt", "messages": question(), "max_tokens": MAX_TOKENS, "n": 8, "temperature": 1.0}
        httpx.post(f"{url}/chat/completions", json=body, timeout=0.3)
    until(lambda: health(url)["replica"]["rows"] == 0)
    assert health(url)["in_work"] == 0


def test_replicas_that_die_cost_their_requests_a_503_and_nothing_else(url, client, media):
    """Killed in the middle of answers, as by the kernel. Who still waits for a replica waits for the next one."""
    video = (media / "0.mp4").as_uri()
    expected = ask(client, video, max_tokens=12).choices[0].message.content
    endless: Any = {"max_tokens": MAX_TOKENS, "temperature": 1.0}
    with ThreadPoolExecutor(2) as clients:
        stream = ask(client, video, stream=True, n=4, **endless)
        next(iter(stream))
        whole = [clients.submit(ask, client, video, n=8, **endless) for _ in range(2)]
        until(lambda: health(url)["replica"]["rows"] >= 8)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ModelReplica" in process.name():
                    process.kill()
        with pytest.raises(openai.APIError, match="went down"):
            list(stream)
        errors = [error for error in (future.exception() for future in whole) if error is not None]
    assert errors
    for error in errors:
        assert isinstance(error, openai.InternalServerError)
        assert error.status_code == 503
        assert error.body["code"] == "model_died"
        assert error.response.headers["Retry-After"] == "5"
    assert httpx.get(f"{url.removesuffix('/v1')}/docs").status_code == 200, "the gateway lives on"
    patient = client.with_options(max_retries=30, timeout=90)
    assert ask(patient, video, max_tokens=12).choices[0].message.content == expected


def test_fifty_clients_get_each_their_own_answer(url, client, media):
    """Mixed questions, videos, lengths and samplings; a second replica comes, and answers as the first."""
    kinds = [
        (f"{number} {color} ?", None if number == 3 else (media / f"{number}.mp4").as_uri(), options)
        for number in range(4)
        for color, options in (
            ("red", {"max_tokens": 30}),
            ("blue", {"max_tokens": 9, "stop": ["ball"]}),
            ("green", {"max_tokens": 20, "temperature": 1.0, "seed": number}),
        )
    ]

    def answer(kind: Any, **options: Any) -> tuple[str, int]:
        text, video, more = kind
        told = ask(client, video, text, **more, **options)
        return told.choices[0].message.content, told.usage.completion_tokens

    expected = [answer(kind) for kind in kinds]
    assert len(set(expected)) == len(kinds)
    start = threading.Barrier(50)

    def replicas() -> int:
        return serve.status().applications["linvt"].deployments["ModelReplica"].replica_states.get("RUNNING", 0)

    grown = threading.Event()

    def client_number(i: int) -> list[bool]:
        """Four turns, and more until the load has brought the second replica."""
        start.wait()
        right: list[bool] = []
        while len(right) < 4 or not grown.is_set():
            turn = (i + len(right)) % len(kinds)
            right.append(answer(kinds[turn]) == expected[turn])
        return right

    with ThreadPoolExecutor(50) as clients:
        asking = [clients.submit(client_number, i) for i in range(50)]
        try:
            until(lambda: replicas() == 2)
        finally:
            grown.set()
        answers = [future.result() for future in asking]
    assert all(all(right) for right in answers)

    encoded: list[Any] = []

    def both_encoded_it() -> bool:
        told = ask(client, (media / "3.mp4").as_uri(), **kinds[0][2])
        if not told.linvt["videos"][0]["from_cache"]:
            encoded.append(told.choices[0].message.content)
        return len(encoded) == 2

    until(both_encoded_it)
    assert encoded[0] == encoded[1]
