"""What the endpoint sends back, in OpenAI's shapes, with our one extension: `linvt` beside `choices`.

OpenAI's clients keep unknown fields, so `completion.linvt["videos"][0]` works with the official one. In a stream
`linvt` comes with the last chunk that carries a `finish_reason`.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


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
    """Of all choices."""

    def body(self) -> dict[str, int]:
        return {**asdict(self), "total_tokens": self.prompt_tokens + self.completion_tokens}


@dataclass(frozen=True, kw_only=True, slots=True)
class LogProb:
    """A token of an answer as the text that it adds, its log-probability in nats, and the likeliest alternatives."""

    token: str
    log_prob: float
    alternatives: tuple[tuple[str, float], ...] = ()

    def body(self) -> dict[str, Any]:
        alternatives = [_log_prob_body(token, value) for token, value in self.alternatives]
        return _log_prob_body(self.token, self.log_prob) | {"top_logprobs": alternatives}


def _log_prob_body(token: str, log_prob: float) -> dict[str, Any]:
    # OpenAI's stand-in for minus infinity, which JSON has not.
    return {"token": token, "logprob": max(log_prob, -9999.0), "bytes": list(token.encode())}


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Some more text of one choice."""

    index: int
    text: str
    log_probs: list[LogProb] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceReply:
    """One whole answer."""

    text: str
    finish_reason: Literal["stop", "length"]
    log_probs: list[LogProb] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came of a request."""

    choices: list[ChoiceReply]
    usage: Usage
    videos: list[dict[str, Any]]
    """The entries of `linvt.videos` for the request's videos, in order."""
    from_cache: list[bool]
    """Of each medium, whether it had been encoded before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """Builds the bodies of one request's answer: whole, or as the chunks of a stream."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, reply: Reply) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "finish_reason": choice.finish_reason,
                "logprobs": _log_probs_body(choice.log_probs),
            }
            for index, choice in enumerate(reply.choices)
        ]
        return self._body("chat.completion", choices) | {
            "usage": reply.usage.body(),
            "linvt": {"videos": reply.videos},
        }

    def first_chunks(self, num_choices: int) -> str:
        return "".join(_event(self._chunk(i, {"role": "assistant", "content": ""})) for i in range(num_choices))

    def text_chunk(self, piece: Piece) -> str:
        return _event(self._chunk(piece.index, {"content": piece.text}, log_probs=piece.log_probs))

    def last_chunks(self, reply: Reply) -> str:
        chunks = [self._chunk(i, {}, choice.finish_reason) for i, choice in enumerate(reply.choices)]
        chunks[-1]["linvt"] = {"videos": reply.videos}
        return "".join(map(_event, chunks))

    def usage_chunk(self, usage: Usage) -> str:
        return _event(self._body("chat.completion.chunk", []) | {"usage": usage.body()})

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        log_probs: list[LogProb] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "finish_reason": finish_reason,
            "logprobs": _log_probs_body(log_probs),
        }
        return self._body("chat.completion.chunk", [choice])

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


DONE = "data: [DONE]\n\n"


def error_event(body: dict[str, Any]) -> str:
    """An error that happens after a stream has begun, when no status can be sent any more."""
    return _event(body)


def _log_probs_body(log_probs: list[LogProb] | None) -> dict[str, Any] | None:
    return None if log_probs is None else {"content": [one.body() for one in log_probs], "refusal": None}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
