"""What the endpoint sends back, in OpenAI's shapes, with our one extension: `linvt` beside `choices`.

OpenAI's clients keep unknown fields, so `completion.linvt["videos"][0]["evidence"]` works with the official one. In a
stream `linvt` comes with the chunk that carries the `finish_reason`.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A sampled frame and its share of the evidence (`linvt.evidence`)."""

    timestamp_s: float
    weight: float


def top_moments(evidence: Sequence[Moment], count: int) -> list[Moment]:
    """The `count` heaviest moments, heaviest first; of equal weights the earlier comes first."""
    return sorted(evidence, key=lambda moment: (-moment.weight, moment.timestamp_s))[:count]


def video_entry(
    *, sha256: str, duration_s: float, shots_s: Sequence[tuple[float, float]], from_cache: bool
) -> dict[str, Any]:
    """The entry of `linvt.videos` for one video of the request, before its evidence."""
    return {
        "sha256": sha256,
        "duration_s": duration_s,
        "shots_s": [list(shot) for shot in shots_s],
        "from_cache": from_cache,
    }


def video_evidence(
    evidence: Sequence[Moment],
    *,
    shot_weights: Sequence[float],
    num_top_moments: int,
    answer_tokens: Sequence[tuple[str, Sequence[Moment]]] | None,
    evidence_map: dict[str, Any] | None,
) -> dict[str, Any]:
    """What a video's entry says of the answer's evidence: weights over time, over `shots_s`, over answer tokens."""
    entry: dict[str, Any] = {
        "evidence": [asdict(moment) for moment in evidence],
        "top_moments": [asdict(moment) for moment in top_moments(evidence, num_top_moments)],
        "shot_weights": list(shot_weights),
    }
    if answer_tokens is not None:
        entry["answer_tokens"] = [
            {"text": text, "evidence": [asdict(moment) for moment in moments]} for text, moments in answer_tokens
        ]
    if evidence_map is not None:
        entry["evidence_map"] = evidence_map
    return entry


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens as the LLM saw them: the prompt's count includes video and image tokens."""

    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, int]:
        return {**asdict(self), "total_tokens": self.prompt_tokens + self.completion_tokens}


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """Builds the bodies of one answer: whole, or as the chunks of a stream."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, *, finish_reason: str, usage: Usage, videos: list[dict[str, Any]]) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": finish_reason,
            "logprobs": None,
        }
        return self._body("chat.completion", [choice]) | {"usage": usage.body(), "linvt": {"videos": videos}}

    def first_chunk(self) -> str:
        return _event(self._chunk({"role": "assistant", "content": ""}))

    def text_chunk(self, text: str) -> str:
        return _event(self._chunk({"content": text}))

    def last_chunk(self, *, finish_reason: str, videos: list[dict[str, Any]]) -> str:
        return _event(self._chunk({}, finish_reason) | {"linvt": {"videos": videos}})

    def usage_chunk(self, usage: Usage) -> str:
        return _event(self._body("chat.completion.chunk", []) | {"usage": usage.body()})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return self._body("chat.completion.chunk", [choice])

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


DONE = "data: [DONE]\n\n"


def error_event(body: dict[str, Any]) -> str:
    """An error that happens after a stream has begun, when no status can be sent any more."""
    return _event(body)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
