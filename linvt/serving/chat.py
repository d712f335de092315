"""A chat request answered by a model: messages and media in, text as it comes, then usage and evidence."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from transformers.generation import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from linvt.answering import Slot, embed_prompt, fill_slots, frame_token_weights, generate
from linvt.evidence import over_frames, over_shots
from linvt.serving.errors import RequestError
from linvt.serving.requests import ChatCompletionRequest, ImagePart, TextPart
from linvt.serving.responses import Moment, Usage, video_entry, video_evidence
from linvt.shards import CachedVideo
from linvt.video_llm import VideoLLM


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaPart:
    """A video or image that a request names."""

    kind: Literal["video", "image"]
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The whole answer. `videos` are the entries of `linvt.videos` for the request's videos, in order."""

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    videos: list[dict[str, Any]]


def conversation(request: ChatCompletionRequest) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """The messages as a backbone's chat template takes them, and their media in order."""
    messages, media = [], []
    for message in request.messages:
        parts: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
                continue
            if isinstance(part, ImagePart):
                media.append(MediaPart(kind="image", url=part.image_url.url))
            else:
                media.append(MediaPart(kind="video", url=part.video_url.url))
            parts.append({"type": media[-1].kind})
        messages.append({"role": "system" if message.role == "developer" else message.role, "content": parts})
    return messages, media


def reply_to(
    llm: VideoLLM,
    request: ChatCompletionRequest,
    media: Sequence[tuple[CachedVideo, bool]],
    *,
    max_new_tokens: int,
    emit: Callable[[str], None],
    cancelled: threading.Event,
) -> Reply:
    """Answers a request whose media are encoded; `media` says of each whether it came from the cache.

    Text is emitted as it is certain: what might become a stop sequence is held back. Greedy unless the request sets a
    temperature. Once `cancelled` is set, generation ends at the next token. Raises RequestError 400 for a conversation
    that the model cannot take.
    """
    messages, _ = conversation(request)
    videos = [item for item, _ in media]
    slots, prompt_LC = _prompt(llm, messages, videos, return_maps=request.linvt.wants_evidence)
    limit = _room(llm, len(prompt_LC), request, max_new_tokens)
    stream = _TextStream(llm, stops=request.stops, emit=emit)
    sampling = _sampling(request)
    with torch.random.fork_rng(enabled=sampling["do_sample"]):
        if request.seed is not None:
            torch.manual_seed(request.seed)
        (ids,) = generate(
            llm,
            [prompt_LC],
            max_new_tokens=limit,
            streamer=stream,
            stopping_criteria=StoppingCriteriaList([_StopWhen(lambda: cancelled.is_set() or stream.stopped)]),
            **sampling,
        )
    return Reply(
        text=stream.text,
        finish_reason="length" if len(ids) == limit and not stream.stopped else "stop",
        usage=Usage(prompt_tokens=len(prompt_LC), completion_tokens=len(ids)),
        videos=[] if cancelled.is_set() else _evidence(llm, request, messages, media, slots, ids),
    )


def _prompt(
    llm: VideoLLM, messages: list[dict[str, Any]], media: Sequence[CachedVideo], *, return_maps: bool
) -> tuple[list[Slot], torch.Tensor]:
    try:
        # First without media, because a conversation that the template refuses must not cost a pass over a video.
        llm.backbone.prompt(messages)
        slots = fill_slots(llm, messages, media, return_maps=return_maps)
        return slots, embed_prompt(llm, messages, slots)
    except (ValueError, TemplateError) as error:
        raise RequestError(400, f"the model cannot take this conversation: {error}", code="bad_conversation") from error


def _room(llm: VideoLLM, num_prompt_tokens: int, request: ChatCompletionRequest, max_new_tokens: int) -> int:
    """How many tokens the answer may have."""
    asked = request.max_completion_tokens or request.max_tokens or max_new_tokens
    model: Any = llm.backbone.model
    context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = min(asked, max_new_tokens) if context is None else min(asked, max_new_tokens, context - num_prompt_tokens)
    if room < 1:
        raise RequestError(
            400,
            f"the prompt has {num_prompt_tokens} tokens with its media, the model's context is {context}",
            code="context_length_exceeded",
        )
    return room


def _sampling(request: ChatCompletionRequest) -> dict[str, Any]:
    if not request.temperature:
        return {"do_sample": False}
    sampling: dict[str, Any] = {"do_sample": True, "temperature": request.temperature}
    return sampling if request.top_p is None else sampling | {"top_p": request.top_p}


def _evidence(
    llm: VideoLLM,
    request: ChatCompletionRequest,
    messages: list[dict[str, Any]],
    media: Sequence[tuple[CachedVideo, bool]],
    slots: Sequence[Slot],
    ids: list[int],
) -> list[dict[str, Any]]:
    entries = []
    weights = frame_token_weights(
        llm, messages, slots, [item for item, _ in media], ids, per_answer_token=request.linvt.evidence_per_token
    )
    for (item, from_cache), weights_RTN in zip(media, weights, strict=True):
        if item.kind == "image":
            continue
        entry = video_entry(
            sha256=item.sha256,
            duration_s=item.duration_s,
            shots_s=[(float(start_s), float(end_s)) for start_s, end_s in item.shots],
            from_cache=from_cache,
        )
        if weights_RTN is not None:
            whole_TN, *parts = weights_RTN.cpu()
            entry |= video_evidence(
                _moments(item, whole_TN),
                shot_weights=over_shots(whole_TN, item.shot_index, len(item.shots)).tolist(),
                num_top_moments=request.linvt.top_moments,
                answer_tokens=[
                    (llm.backbone.decode([id_]), _moments(item, part_TN)) for id_, part_TN in zip(ids, parts)
                ]
                if request.linvt.evidence_per_token
                else None,
                evidence_map={"grid": item.grid, "weights": whole_TN.tolist()} if request.linvt.evidence_map else None,
            )
        entries.append(entry)
    return entries


def _moments(item: CachedVideo, weights_TN: torch.Tensor) -> list[Moment]:
    return [
        Moment(timestamp_s=float(time_s), weight=weight)
        for time_s, weight in zip(item.timestamps_s, over_frames(weights_TN).tolist(), strict=True)
    ]


class _StopWhen:
    """A stopping criterion that looks at nothing but a condition of ours."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._condition(), dtype=torch.bool, device=input_ids.device)


class _TextStream(BaseStreamer):
    """Token ids in, text out as soon as no later token can change it; ends before the first stop sequence."""

    def __init__(self, llm: VideoLLM, *, stops: list[str], emit: Callable[[str], None]) -> None:
        self._decode, self._stop_ids = llm.backbone.decode, set(llm.backbone.stop_ids)
        self._stops, self._emit = stops, emit
        self._ids: list[int] = []
        self._num_emitted = 0
        self.text, self.stopped = "", False

    def put(self, value: torch.Tensor) -> None:
        if value.ndim > 1 or self.stopped:  # the prompt comes first, as a batch
            return
        self._ids += [token_id for token_id in value.tolist() if token_id not in self._stop_ids]
        self.text = self._decode(self._ids)
        found = [self.text.find(stop) for stop in self._stops if stop in self.text]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        self._emit_up_to(len(self.text) if self.stopped else self._num_certain())

    def end(self) -> None:
        self._emit_up_to(len(self.text))

    def _num_certain(self) -> int:
        # A character cut in the middle decodes to U+FFFD until its last byte comes.
        certain = len(self.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        for stop in self._stops:
            begun = next((n for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n])), 0)
            certain = min(certain, len(self.text) - begun)
        return certain

    def _emit_up_to(self, end: int) -> None:
        if end > self._num_emitted:
            self._emit(self.text[self._num_emitted : end])
            self._num_emitted = end
