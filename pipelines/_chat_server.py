"""A replica of the endpoint: the model, a cache of encoded videos, and the HTTP routes.

Decoding runs in Ray tasks: processes that may crash, hang or outgrow memory on hostile media without taking the replica
along.
"""

import asyncio
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from starlette.exceptions import HTTPException

from linvt.extraction.identity import FeatureSpec
from linvt.extraction.rows import VideoRow
from linvt.serving.chat import MediaPart, Reply, conversation, reply_to
from linvt.serving.config import ServeConfig
from linvt.serving.encoding import DecodeOrder, decode, decode_order, encode
from linvt.serving.errors import RequestError
from linvt.serving.media import LocalMedia, MediaRules, fetch_media
from linvt.serving.requests import ChatCompletionRequest, parse_request
from linvt.serving.responses import DONE, Completion, error_event
from linvt.serving.token_cache import TokenCache
from linvt.shards import CachedVideo
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import VideoSideCache

logger = logging.getLogger(__name__)

app = FastAPI(title="LinVT", docs_url=None, redoc_url=None, openapi_url=None)


@app.exception_handler(RequestError)
async def _refuse(_: Request, error: RequestError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


@app.exception_handler(HTTPException)
async def _no_such_route(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _refuse(request, RequestError(error.status_code, message, code="not_found"))


@app.exception_handler(Exception)
async def _fail(request: Request, error: Exception) -> JSONResponse:
    logger.error("request failed", exc_info=error)
    return await _refuse(request, RequestError(500, "the server failed on this request", code="internal_error"))


class ChatServer:
    """One replica."""

    def __init__(self, config: ServeConfig, spec: FeatureSpec, encode_batch_size: int, api_key: str | None) -> None:
        self._config, self._spec, self._encode_batch_size, self._api_key = config, spec, encode_batch_size, api_key
        on_gpu = torch.cuda.is_available()
        auto = torch.bfloat16 if on_gpu else torch.float32
        self._llm = VideoLLM.from_pretrained(
            config.model,
            dtype=auto if config.dtype == "auto" else getattr(torch, config.dtype),
            device="cuda" if on_gpu else "cpu",
        )
        self._rules = MediaRules(
            allowed_dirs=config.allowed_media_dir,
            allowed_hosts=config.allowed_media_host,
            max_bytes=config.max_media_mb * 1024**2,
            fetch_timeout_s=config.fetch_timeout_s,
        )
        # A quarter of the cache's memory is for what LinVT makes of the latest videos, whatever is asked about them.
        cache_bytes = int(config.cache_gb * 1024**3)
        self._cache = TokenCache[CachedVideo](
            cache_bytes - cache_bytes // 4, lambda video: video.tokens.numel() * video.tokens.element_size()
        )
        self._llm.video_sides = VideoSideCache(cache_bytes // 4)
        # One thread: the model answers one request after the other, in the order they came.
        self._model_thread = ThreadPoolExecutor(max_workers=1)
        self._decoders = asyncio.Semaphore(config.num_decoders)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._decode = ray.remote(decode).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        self._in_work: set[object] = set()
        self._num_requests = 0
        self._started_at = int(time.time())

    @app.get("/health")
    async def health(self) -> dict[str, Any]:
        cache = {"hits": self._cache.hits, "misses": self._cache.misses, "bytes": self._cache.held_bytes}
        return {"status": "ok", "requests": self._num_requests, "in_work": len(self._in_work), "cache": cache}

    @app.get("/v1/models")
    async def models(self, request: Request) -> dict[str, Any]:
        self._authenticate(request)
        return {"object": "list", "data": [self._model_card()]}

    @app.get("/v1/models/{name:path}")
    async def model(self, request: Request, name: str) -> dict[str, Any]:
        self._authenticate(request)
        if name != self._config.served_model_name:
            raise RequestError(404, f"no model {name!r} here", code="model_not_found")
        return self._model_card()

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Any:
        self._authenticate(request)
        place = self._admit()
        try:
            asked = parse_request(await self._json(request), model_names=(self._config.served_model_name,))
            _, parts = conversation(asked)
            if len(parts) > self._config.max_media_parts:
                raise RequestError(
                    400, f"{len(parts)} media: at most {self._config.max_media_parts} a request", code="too_many_media"
                )
            media = [await self._encoded(part, asked) for part in parts]
            completion = Completion(model=self._config.served_model_name)
            if asked.stream:
                events = self._events(asked, media, completion, place)
                # What goes wrong before the first word still gets a status of its own.
                first = await anext(events)
                place = None
                return StreamingResponse(_chained(first, events), media_type="text/event-stream")
            cancelled = threading.Event()
            try:
                reply = await self._on_model(self._reply, asked, media, lambda _: None, cancelled)
            finally:
                cancelled.set()
            return completion.whole(
                reply.text, finish_reason=reply.finish_reason, usage=reply.usage, videos=reply.videos
            )
        finally:
            self._in_work.discard(place)

    async def _events(
        self,
        asked: ChatCompletionRequest,
        media: list[tuple[CachedVideo, bool]],
        completion: Completion,
        place: object,
    ) -> AsyncIterator[str]:
        """The server-sent events of an answer. The request leaves its place when the model is done with it."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        cancelled = threading.Event()

        def emit(text: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        def finish(_: Any) -> None:
            self._in_work.discard(place)
            pieces.put_nowait(None)

        answering = asyncio.ensure_future(self._on_model(self._reply, asked, media, emit, cancelled))
        answering.add_done_callback(finish)
        try:
            head = completion.first_chunk()
            while (piece := await pieces.get()) is not None:
                yield head + completion.text_chunk(piece)
                head = ""
            reply = await answering
            yield head + completion.last_chunk(finish_reason=reply.finish_reason, videos=reply.videos)
            if asked.includes_usage:
                yield completion.usage_chunk(reply.usage)
            yield DONE
        finally:
            cancelled.set()

    def _reply(
        self,
        asked: ChatCompletionRequest,
        media: list[tuple[CachedVideo, bool]],
        emit: Callable[[str], None],
        cancelled: threading.Event,
    ) -> Reply:
        return reply_to(
            self._llm, asked, media, max_new_tokens=self._config.max_new_tokens, emit=emit, cancelled=cancelled
        )

    async def _on_model(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, function, *arguments)

    # -- media ------------------------------------------------------------------------------------------------------

    async def _encoded(self, part: MediaPart, asked: ChatCompletionRequest) -> tuple[CachedVideo, bool]:
        """The frame tokens of a video or image, and whether they came from the cache."""
        scratch = TemporaryDirectory(prefix="linvt-")
        made = False
        try:
            media = await asyncio.to_thread(fetch_media, part.url, self._rules, Path(scratch.name))
            order = self._order(media, part, asked)

            def make() -> Any:
                nonlocal made
                made = True
                return self._make(order, scratch)

            key = (media.sha256, order.spec.num_frames, order.fps)
            return await self._cache.get(key, make), not made
        finally:
            if not made:  # else the making, which outlives a client that leaves, removes its file
                scratch.cleanup()

    def _order(self, media: LocalMedia, part: MediaPart, asked: ChatCompletionRequest) -> DecodeOrder:
        return decode_order(
            media,
            part.kind,
            asked.media_io_kwargs.video,
            spec=self._spec,
            detector=self._config.detector,
            detector_weights=self._config.detector_weights,
            max_frames=self._config.max_frames,
            max_duration_s=self._config.max_duration_s,
            max_frame_pixels=self._config.max_frame_megapixels * 1e6,
        )

    async def _make(self, order: DecodeOrder, scratch: TemporaryDirectory[str]) -> CachedVideo:
        with scratch:
            async with self._decoders:
                row, frames = await self._decoded(order)
            return await self._on_model(
                lambda: encode(self._llm.backbone, order, row, frames, batch_size=self._encode_batch_size)
            )

    async def _decoded(self, order: DecodeOrder) -> tuple[VideoRow, np.ndarray | None]:
        """`decode(order)` in a process of its own on this node. Raises RequestError 422 if that dies or hangs."""
        task, timeout_s = self._decode.remote(order), self._config.decode_timeout_s
        try:
            return await asyncio.wait_for(asyncio.wrap_future(task.future()), timeout_s)
        except TimeoutError as error:
            ray.cancel(task, force=True)
            raise RequestError(
                422, f"decoding the {order.kind} took longer than {timeout_s:g} s", code="media_not_decodable"
            ) from error
        except RayError as error:
            # What `decode` raises itself is our fault, or our storage's; bad media would be a row.
            if isinstance(error, RayTaskError) and not isinstance(error.cause, MemoryError):
                raise
            logger.warning("a decoder died on %s: %s", order.path.name, error)
            raise RequestError(
                422, f"the decoder crashed on the {order.kind}, or ran out of memory", code="media_not_decodable"
            ) from error

    # -- admission --------------------------------------------------------------------------------------------------

    def _authenticate(self, request: Request) -> None:
        if self._api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._api_key.encode()):
            raise RequestError(401, "no valid API key: send it as Authorization: Bearer KEY", code="invalid_api_key")

    def _admit(self) -> object:
        """A place among the requests in work, to be discarded from them. Raises RequestError 503 when all are taken."""
        if len(self._in_work) > self._config.max_queued_requests:
            raise RequestError(
                503,
                f"{len(self._in_work)} requests are in work already; try again later",
                code="overloaded",
                retry_after_s=1,
            )
        place = object()
        self._in_work.add(place)
        self._num_requests += 1
        return place

    async def _json(self, request: Request) -> Any:
        # Base64 is 4/3 of the media.
        max_bytes = self._config.max_media_mb * 1024**2 * 4 // 3 + 1024**2
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise RequestError(413, f"the request is larger than {max_bytes} bytes", code="request_too_large")
        try:
            return json.loads(body)
        except ValueError as error:
            raise RequestError(400, f"the request is not JSON: {error}", code="invalid_json") from error

    def _model_card(self) -> dict[str, Any]:
        return {
            "id": self._config.served_model_name,
            "object": "model",
            "created": self._started_at,
            "owned_by": "linvt",
            "image_llm": self._llm.backbone.name,
        }


async def _chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """A stream whose status is sent already, so that an error can only be told as an event."""
    yield first
    try:
        async for event in rest:
            yield event
    except RequestError as error:
        yield error_event(error.body())
    except Exception:
        logger.exception("a stream failed")
        yield error_event(RequestError(500, "the server failed on this request", code="internal_error").body())


# Down here, because this pickles the class with whatever the module holds by now.
chat_deployment = serve.deployment(serve.ingress(app)(ChatServer))
