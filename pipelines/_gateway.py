"""The endpoint's gateway: HTTP routes, keys, admission, fetching of media. It holds no model.

The model's replicas stand behind it as a deployment of their own, so that one that dies costs its requests one clear
error and nothing else.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from linvt.extraction.identity import FeatureSpec
from linvt.serving.chat import MediaPart, conversation
from linvt.serving.config import ServeConfig, is_loopback
from linvt.serving.encoding import decode_order
from linvt.serving.errors import RequestError
from linvt.serving.media import FRAMES, LocalMedia, MediaRules, fetch_media
from linvt.serving.requests import ChatCompletionRequest, parse_request
from linvt.serving.responses import DONE, Completion, Piece, Reply, error_event
from linvt.serving.schema import openapi
from pipelines._model_replica import SentMedia

logger = logging.getLogger(__name__)

app = FastAPI(title="LinVT", redoc_url=None)
app.openapi = lambda: openapi(version("linvt"))


@app.exception_handler(RequestError)
async def _refuse(_: Request, error: RequestError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


@app.exception_handler(HTTPException)
async def _no_such_route(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    refused = await _refuse(request, RequestError(error.status_code, message, code=code))
    refused.headers.update(error.headers or {})
    return refused


@app.exception_handler(Exception)
async def _fail(request: Request, error: Exception) -> JSONResponse:
    return await _refuse(request, _told(error))


class Gateway:
    """Answers HTTP."""

    def __init__(self, config: ServeConfig, spec: FeatureSpec, api_key: str | None, model: DeploymentHandle) -> None:
        self._config, self._spec, self._api_key, self._model = config, spec, api_key, model
        self._rules = MediaRules(
            allowed_dirs=config.allowed_media_dir,
            allowed_hosts=config.allowed_media_host,
            max_bytes=config.max_media_mb * 1024**2,
            fetch_timeout_s=config.fetch_timeout_s,
            max_frames=config.max_frames,
        )
        # Base64 is 4/3 of the media.
        self._max_body_bytes = config.max_media_mb * 1024**2 * 4 // 3 + 1024**2
        self._held_body_bytes = 0
        self._in_work: set[object] = set()
        self._num_requests = self._num_hits = self._num_misses = 0
        self._started_at = int(time.time())

    @app.get("/health")
    async def health(self) -> dict[str, Any]:
        cache = {"hits": self._num_hits, "misses": self._num_misses}
        return {"status": "ok", "requests": self._num_requests, "in_work": len(self._in_work), "cache": cache}

    @app.get("/v1/models")
    async def models(self, request: Request) -> dict[str, Any]:
        self._authenticate(request)
        return {"object": "list", "data": [await self._model_card()]}

    @app.get("/v1/models/{name:path}")
    async def model(self, request: Request, name: str) -> dict[str, Any]:
        self._authenticate(request)
        if name != self._config.served_model_name:
            raise RequestError(404, f"no model {name!r} here", code="model_not_found")
        return await self._model_card()

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Any:
        self._authenticate(request)
        place = self._admit()
        try:
            asked = parse_request(await self._json(request), model_names=(self._config.served_model_name,))
            sent = await self._sent(asked)
            completion = Completion(model=self._config.served_model_name)
            if asked.stream:
                events = self._events(asked, sent, completion, place)
                # What goes wrong before the first word still gets a status of its own.
                first = await anext(events)
                place = None
                return StreamingResponse(_chained(first, events), media_type="text/event-stream")
            return JSONResponse(completion.whole(await self._reply(asked, sent)))
        except Exception as error:
            raise _told(error) from error
        finally:
            self._in_work.discard(place)

    # -- the model ----------------------------------------------------------------------------------------------------

    async def _reply(self, asked: ChatCompletionRequest, sent: list[SentMedia]) -> Reply:
        response = self._model.answer.remote(asked, sent)
        try:
            reply: Reply = await response
        except asyncio.CancelledError:  # the client has left
            response.cancel()
            raise
        self._count(reply)
        return reply

    async def _events(
        self, asked: ChatCompletionRequest, sent: list[SentMedia], completion: Completion, place: object
    ) -> AsyncIterator[str]:
        """The server-sent events of an answer. At their end the request leaves its place."""
        answer: Any = self._model.options(stream=True).stream.remote(asked, sent)
        finished = False
        try:
            head = completion.first_chunks(asked.num_choices)
            async for made in answer:
                if isinstance(made, Reply):
                    self._count(made)
                    yield head + completion.last_chunks(made)
                    if asked.includes_usage:
                        yield completion.usage_chunk(made.usage)
                else:
                    pieces: list[Piece] = made
                    yield head + "".join(map(completion.text_chunk, pieces))
                head = ""
            finished = True
            yield DONE
        finally:
            self._in_work.discard(place)
            if not finished:
                answer.cancel()

    def _count(self, reply: Reply) -> None:
        self._num_hits += sum(reply.from_cache)
        self._num_misses += len(reply.from_cache) - sum(reply.from_cache)

    async def _model_card(self) -> dict[str, Any]:
        return {
            "id": self._config.served_model_name,
            "object": "model",
            "created": self._started_at,
            "owned_by": "linvt",
            "image_llm": await self._model.image_llm.remote(),
        }

    # -- media --------------------------------------------------------------------------------------------------------

    async def _sent(self, asked: ChatCompletionRequest) -> list[SentMedia]:
        """The request's media, fetched and on their way. Raises RequestError."""
        _, parts = conversation(asked)
        if len(parts) > self._config.max_media_parts:
            raise RequestError(
                400, f"{len(parts)} media: at most {self._config.max_media_parts} a request", code="too_many_media"
            )
        try:
            async with asyncio.TaskGroup() as group:  # of which the first error ends the others
                fetching = [group.create_task(self._fetched(part, asked)) for part in parts]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in fetching]

    async def _fetched(self, part: MediaPart, asked: ChatCompletionRequest) -> SentMedia:
        with TemporaryDirectory(prefix="linvt-") as scratch:
            media = await fetch_media(part.url, self._rules, Path(scratch))
            order = decode_order(
                media.container,
                part.kind,
                asked.video_options,
                spec=self._spec,
                detector=self._config.detector,
                detector_weights=self._config.detector_weights,
                max_frames=self._config.max_frames,
            )
            place = await asyncio.to_thread(_shared, media) if media.is_temporary else media.path
        return SentMedia(sha256=media.sha256, order=order, place=place)

    # -- admission ----------------------------------------------------------------------------------------------------

    def _authenticate(self, request: Request) -> None:
        if self._api_key is None:
            self._check_host(request)
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._api_key.encode()):
            raise RequestError(401, "no valid API key: send it as Authorization: Bearer KEY", code="invalid_api_key")

    def _check_host(self, request: Request) -> None:
        """Without a key, a page in this machine's browser must not reach us by a name that it made resolve to us."""
        try:
            host = request.url.hostname or ""
        except ValueError:  # such as half of an IPv6 address
            host = ""
        if not self._config.allow_anonymous and not is_loopback(host):
            raise RequestError(
                403,
                f"the Host header says {host!r}; without an API key this server answers to loopback names alone",
                code="host_not_allowed",
            )

    def _admit(self) -> object:
        """A place among the requests in work, to be discarded from them. Raises RequestError 503 when all are taken."""
        if len(self._in_work) >= self._config.max_requests:
            raise _overloaded(f"{len(self._in_work)} requests are in work already")
        place = object()
        self._in_work.add(place)
        self._num_requests += 1
        return place

    async def _json(self, request: Request) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Other kinds a web page may send to anyone without asking.
        if kind != "application/json":
            raise RequestError(
                415, f"send the request as application/json, not {kind[:50]!r}", code="unsupported_media_type"
            )
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.upload_timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    self._held_body_bytes += len(chunk)
                    self._check_body(len(body))
            return json.loads(body, parse_constant=_no_constant)
        except TimeoutError as error:
            raise RequestError(
                408, f"the request took longer than {self._config.upload_timeout_s:g} s", code="upload_timeout"
            ) from error
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the request is not JSON: {error}", code="invalid_json") from error
        finally:
            self._held_body_bytes -= len(body)

    def _check_body(self, num_bytes: int) -> None:
        if num_bytes > self._max_body_bytes:
            raise RequestError(
                413, f"the request is larger than {self._max_body_bytes} bytes", code="request_too_large"
            )
        # Many large requests at once would fill the memory, each of them being allowed.
        if self._held_body_bytes > 4 * self._max_body_bytes:
            raise _overloaded("too many large requests arrive at once")


def _shared(media: LocalMedia) -> ray.ObjectRef:
    """The content of a medium where every node can get at it."""
    files = sorted(media.path.iterdir()) if media.container == FRAMES else [media.path]
    return ray.put([file.read_bytes() for file in files])


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _overloaded(reason: str) -> RequestError:
    return RequestError(503, f"{reason}; try again later", code="overloaded", retry_after_s=1)


def _told(error: BaseException) -> RequestError:
    """What the client is told of an error."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, RequestError):
        return error.cause
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BackPressureError):
        return _overloaded("too many requests wait for the model")
    logger.error("request failed", exc_info=error)
    if isinstance(error, RayActorError):
        return RequestError(
            503, "the model went down while it answered; it is started again", code="model_died", retry_after_s=5
        )
    return RequestError(500, "the server failed on this request", code="internal_error")


async def _chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """A stream whose status is sent already, so that an error can only be told as an event."""
    yield first
    try:
        async for event in rest:
            yield event
    except Exception as error:
        yield error_event(_told(error).body())


# Down here, because this pickles the class with whatever the module holds by now.
gateway_deployment = serve.deployment(serve.ingress(app)(Gateway))
