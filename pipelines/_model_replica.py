"""A replica of the model behind the endpoint: encodes media, keeps what it encoded, answers requests in batches.

It sees requests that the gateway has let in and checked. Media are decoded in children with limits on time and memory.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray import serve

from linvt.extraction.decode_process import DecodeProcess
from linvt.extraction.identity import FeatureSpec
from linvt.serving.batching import Batcher
from linvt.serving.chat import Answering
from linvt.serving.config import ServeConfig
from linvt.serving.encoding import DecodeOrder, decode, encode
from linvt.serving.errors import RequestError
from linvt.serving.requests import ChatCompletionRequest
from linvt.serving.responses import Piece, Reply
from linvt.serving.token_cache import TokenCache
from linvt.shards import CachedVideo
from linvt.video import MediaLimits
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import VideoSideCache


@dataclass(frozen=True, kw_only=True, slots=True)
class SentMedia:
    """A medium that the gateway fetched, on its way to a replica, which may be on another node."""

    sha256: str
    order: DecodeOrder
    place: Path | ray.ObjectRef
    """A path that every node sees; or a reference to the content: of a file [bytes], of frames one a frame."""


class ModelReplica:
    """One copy of the model."""

    def __init__(self, config: ServeConfig, spec: FeatureSpec, encode_batch_size: int) -> None:
        self._config, self._spec, self._encode_batch_size = config, spec, encode_batch_size
        on_gpu = torch.cuda.is_available()
        auto = torch.bfloat16 if on_gpu else torch.float32
        self._llm = VideoLLM.from_pretrained(
            config.model,
            dtype=auto if config.dtype == "auto" else getattr(torch, config.dtype),
            device="cuda" if on_gpu else "cpu",
        )
        # A quarter of the cache's memory is for what LinVT makes of the latest videos, whatever is asked about them.
        cache_bytes = int(config.cache_gb * 1024**3)
        self._cache = TokenCache[CachedVideo](
            cache_bytes - cache_bytes // 4, lambda video: video.tokens.numel() * video.tokens.element_size()
        )
        self._llm.video_sides = VideoSideCache(cache_bytes // 4)
        self._decoders: asyncio.LifoQueue[DecodeProcess] = asyncio.LifoQueue()
        limits = MediaLimits(max_duration_s=config.max_duration_s, max_frame_pixels=config.max_frame_megapixels * 1e6)
        for _ in range(config.num_decoders):
            self._decoders.put_nowait(
                DecodeProcess(
                    stall_timeout_s=config.decode_timeout_s,
                    timeout_s=config.decode_timeout_s,
                    memory_mb=config.decode_memory_mb,
                    limits=limits,
                )
            )
        # One thread each: a long encoding or evidence keeps nobody else's question from being prepared, and
        # `video_sides` is for one thread.
        self._encoding, self._preparing, self._explaining = (ThreadPoolExecutor(max_workers=1) for _ in range(3))
        self._batcher = Batcher(self._llm.backbone, max_rows=config.max_batch)

    def check_health(self) -> None:
        """Ray Serve asks now and then, and replaces a replica that raises."""
        if not self._batcher.is_alive:
            raise RuntimeError("the thread that generates has died")

    def image_llm(self) -> str:
        """What the model's image-LLM is called."""
        return self._llm.backbone.name

    async def answer(self, asked: ChatCompletionRequest, sent: Sequence[SentMedia]) -> Reply:
        """The whole answer. Raises RequestError. Ends early when its task is cancelled."""
        cancelled = threading.Event()
        try:
            answering = await self._prepared(asked, sent, cancelled)
            return await self._generated(answering)
        finally:
            cancelled.set()

    async def stream(
        self, asked: ChatCompletionRequest, sent: Sequence[SentMedia]
    ) -> AsyncIterator[list[Piece] | Reply]:
        """Again and again all text that has come since the consumer asked last; in the end the whole answer."""
        loop = asyncio.get_running_loop()
        cancelled, ready = threading.Event(), asyncio.Event()
        pieces: list[Piece] = []

        def add(piece: Piece) -> None:
            pieces.append(piece)
            ready.set()

        def emit(piece: Piece) -> None:
            loop.call_soon_threadsafe(add, piece)

        try:
            answering = await self._prepared(asked, sent, cancelled, emit)
            generating = asyncio.ensure_future(self._generated(answering))
            generating.add_done_callback(lambda _: ready.set())
            while True:
                await ready.wait()
                ready.clear()
                if pieces:
                    yield pieces.copy()
                    pieces.clear()
                elif generating.done():
                    break
            yield await generating
        finally:
            cancelled.set()

    async def _prepared(
        self,
        asked: ChatCompletionRequest,
        sent: Sequence[SentMedia],
        cancelled: threading.Event,
        emit: Callable[[Piece], None] = lambda _: None,
    ) -> Answering:
        media = [await self._encoded(one) for one in sent]
        return await self._in(
            self._preparing,
            lambda: Answering(
                self._llm,
                asked,
                media,
                max_new_tokens=self._config.max_new_tokens,
                emit=emit,
                is_cancelled=cancelled.is_set,
            ),
        )

    async def _generated(self, answering: Answering) -> Reply:
        await asyncio.gather(*(asyncio.wrap_future(self._batcher.submit(row)) for row in answering.rows))
        if answering.wants_evidence:
            return await self._in(self._explaining, answering.reply)
        return answering.reply()

    async def _encoded(self, sent: SentMedia) -> tuple[CachedVideo, bool]:
        """The frame tokens of a video or image, and whether they came from the cache."""
        made = False

        def make() -> Any:
            nonlocal made
            made = True
            return self._make(sent)

        spec = sent.order.spec
        key = (sent.sha256, spec.num_frames, spec.fps, sent.order.is_frames)
        return await self._cache.get(key, make), not made

    async def _make(self, sent: SentMedia) -> CachedVideo:
        decoder = await self._decoders.get()
        try:
            with TemporaryDirectory(prefix="linvt-") as scratch:
                path = sent.place
                if not isinstance(path, Path):
                    path = await asyncio.to_thread(_written, await path, Path(scratch), sent.order.is_frames)
                row, frames = await asyncio.to_thread(decode, sent.order, path, decoder)
        finally:
            self._decoders.put_nowait(decoder)
        # The gateway looked at the file before; whoever changes it in between must not have it cached as the old one.
        if not sent.order.is_frames and row.sha256 not in (None, sent.sha256):
            raise RequestError(422, "the media file changed while it was read", code="media_not_found")
        return await self._in(
            self._encoding,
            lambda: encode(self._llm.backbone, sent.order, row, frames, batch_size=self._encode_batch_size),
        )

    @staticmethod
    async def _in(thread: ThreadPoolExecutor, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, function)


def _written(contents: list[Any], folder: Path, is_frames: bool) -> Path:
    for number, content in enumerate(contents):
        (folder / f"{number:06d}.jpg").write_bytes(content)
    return folder if is_frames else folder / "000000.jpg"


# Down here, because this pickles the class with whatever the module holds by now.
model_deployment = serve.deployment(ModelReplica)
