"""A chat request answered by a model: messages and media in, text as it comes, then usage and evidence.

`Answering` is made once the media are encoded; a `Batcher` generates its rows; its `reply` is what came of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jinja2 import TemplateError

from linvt.answering import Slot, embed_prompt, fill_slots, frame_token_weights
from linvt.evidence import over_frames, over_shots
from linvt.serving.batching import Generated, Row
from linvt.serving.errors import RequestError
from linvt.serving.requests import ChatCompletionRequest, ImagePart, TextPart
from linvt.serving.responses import ChoiceReply, LogProb, Moment, Piece, Reply, Usage, video_entry, video_evidence
from linvt.serving.sampling import Choice, Sampling
from linvt.serving.text_stream import TextStream
from linvt.shards import CachedVideo
from linvt.video_llm import VideoLLM


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaPart:
    """A video or image that a request names."""

    kind: Literal["video", "image"]
    url: str


def conversation(request: ChatCompletionRequest) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """The messages as a backbone's chat template takes them, and their media in order."""
    messages, media = [], []
    for message in request.messages:
        parts: list[dict[str, Any]] = []
        for part in message.parts:
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


class Answering:
    """A request on its way. Making it runs LinVT and embeds the prompt; `reply` computes the evidence, if asked for."""

    def __init__(
        self,
        llm: VideoLLM,
        request: ChatCompletionRequest,
        media: Sequence[tuple[CachedVideo, bool]],
        *,
        max_new_tokens: int,
        emit: Callable[[Piece], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """`media` says of each whether it came from the cache. `emit` is told text as it is certain: what might become
        a stop sequence is held back. Once `is_cancelled`, generation ends at the next token.

        Raises RequestError 400 for a conversation that the model cannot take.
        """
        self._llm, self._request, self._media = llm, request, media
        self._messages, _ = conversation(request)
        videos = [item for item, _ in media]
        self._slots, prompt_LC = _prompt(llm, self._messages, videos, return_maps=request.linvt.wants_evidence)
        self._num_prompt_tokens = len(prompt_LC)
        limit = _room(llm, len(prompt_LC), request, max_new_tokens)
        self._writers = [_Writer(llm, request, index, emit) for index in range(request.num_choices)]
        self.rows = [
            Row(
                prompt=prompt_LC,
                max_new_tokens=limit,
                sampling=_sampling(llm, request, index),
                on_token=writer.put,
                on_end=writer.end,
                is_cancelled=is_cancelled,
            )
            for index, writer in enumerate(self._writers)
        ]
        """One a choice, for a `Batcher`."""

    @property
    def wants_evidence(self) -> bool:
        """Whether `reply` takes forward and backward passes."""
        return self._request.linvt.wants_evidence

    def reply(self) -> Reply:
        """The whole answer, once all rows are done."""
        generated = [row.future.result() for row in self.rows]
        return Reply(
            choices=[writer.reply(one) for writer, one in zip(self._writers, generated)],
            usage=Usage(
                prompt_tokens=self._num_prompt_tokens, completion_tokens=sum(len(one.ids) for one in generated)
            ),
            videos=_evidence(self._llm, self._request, self._messages, self._media, self._slots, generated[0].ids),
            from_cache=[from_cache for _, from_cache in self._media],
        )


class _Writer:
    """Makes the text of one choice of its tokens."""

    def __init__(
        self, llm: VideoLLM, request: ChatCompletionRequest, index: int, emit: Callable[[Piece], None]
    ) -> None:
        self._decode, self._index, self._emit = llm.backbone.decode, index, emit
        self._stream = TextStream(llm.backbone.decode, stops=request.stops, emit=self._emit_text)
        self._ids: list[int] = []
        self._log_probs: list[LogProb] | None = [] if request.logprobs else None
        self._num_emitted_log_probs = 0

    def put(self, choice: Choice) -> bool:
        if self._log_probs is not None:
            assert choice.log_prob is not None
            self._log_probs.append(
                LogProb(
                    token=self._piece(choice.token_id),
                    log_prob=choice.log_prob,
                    alternatives=tuple((self._piece(token_id), value) for token_id, value in choice.alternatives),
                )
            )
        self._ids.append(choice.token_id)
        return self._stream.put(choice.token_id)

    def end(self) -> None:
        self._stream.end()

    def reply(self, generated: Generated) -> ChoiceReply:
        return ChoiceReply(text=self._stream.text, finish_reason=generated.finish_reason, log_probs=self._log_probs)

    def _piece(self, token_id: int) -> str:
        """What a token adds to the text, so that the tokens' texts together are the answer's."""
        return self._decode([*self._ids, token_id])[len(self._decode(self._ids)) :]

    def _emit_text(self, text: str) -> None:
        log_probs = None
        if self._log_probs is not None:
            log_probs = self._log_probs[self._num_emitted_log_probs :]
            self._num_emitted_log_probs = len(self._log_probs)
        self._emit(Piece(index=self._index, text=text, log_probs=log_probs))


def _sampling(llm: VideoLLM, request: ChatCompletionRequest, index: int) -> Sampling:
    model: Any = llm.backbone.model
    default: float | None = model.generation_config.repetition_penalty
    return Sampling(
        temperature=request.temperature or 0.0,
        top_p=request.top_p or 1.0,
        # vLLM's clients say "all" by -1.
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or default or 1.0,
        # Choices of one request differ, and the first is what the seed gives alone.
        seed=None if request.seed is None else request.seed + index,
        num_log_probs=(request.top_logprobs or 0) if request.logprobs else None,
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


def _evidence(
    llm: VideoLLM,
    request: ChatCompletionRequest,
    messages: list[dict[str, Any]],
    media: Sequence[tuple[CachedVideo, bool]],
    slots: Sequence[Slot],
    ids: list[int],
) -> list[dict[str, Any]]:
    entries, weights = [], [None] * len(media)
    if request.linvt.wants_evidence:
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
