"""Asking a judge what an answer is worth: retried where it fails, and never guessed."""

import time
from dataclasses import dataclass
from typing import Any

import httpx

from linvt.evaluation.endpoint import bearer
from linvt.evaluation.rules.judging import JudgeProtocol

_TRIES = 5
_TIMEOUT_S = 120.0
_MOST_TEMPERATURE = 2.0


class JudgeError(RuntimeError):
    """A judge that gave no verdict on an answer, after every try."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A judge's verdict on one answer: a line of judgements-….jsonl."""

    item_id: str
    score: float
    correct: bool | None
    reply: str
    model: str
    """What the judge calls itself; it may say more than the name that it was asked by."""
    tries: int


class Judge:
    """A model behind an OpenAI-compatible endpoint, asked by one benchmark's protocol. Safe to use from threads."""

    def __init__(
        self, url: str, model: str, protocol: JudgeProtocol, *, key_env: str | None = None, wait_s: float = 1.0
    ) -> None:
        """`wait_s` is how long it waits after a first failure; after each further one, twice as long."""
        self._client = httpx.Client(
            base_url=url.rstrip("/"), headers=bearer(key_env, "--judge-key-env"), timeout=_TIMEOUT_S
        )
        self._url, self._model, self._protocol, self._wait_s = url, model, protocol, wait_s

    def close(self) -> None:
        self._client.close()

    @property
    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        return {
            "model": self._model,
            "url": self._url,
            "protocol": self._protocol.name,
            "protocol_version": self._protocol.version,
            "judge_there": self._protocol.judge_there,
        }

    def judge(self, item_id: str, *, question: str, answer: str, prediction: str) -> Judgement:
        """The verdict on `prediction`. Raises JudgeError.

        First at temperature 0, and half a degree warmer each time that the reply cannot be read, as MM-Vet's and
        VLMEvalKit's scripts do: at 0 it would only be said again.
        """
        messages, unread, failure = self._protocol.messages(question, answer, prediction), 0, ""
        for attempt in range(1, _TRIES + 1):
            try:
                reply, model = self._ask(messages, temperature=min(_MOST_TEMPERATURE, 0.5 * unread))
                verdict = self._protocol.parse(reply)
            except (httpx.HTTPError, _Refused) as error:
                failure = f"{type(error).__name__}: {error}"
                if isinstance(error, _Refused) and not error.is_passing:
                    break
                if attempt < _TRIES:
                    time.sleep(_seconds_to_wait(error, self._wait_s * 2 ** (attempt - 1)))
            except ValueError as error:
                failure = f"{error}, got {reply[:80]!r}"
                if not unread and self._protocol.told_again:
                    last = messages[-1]
                    messages = [*messages[:-1], last | {"content": last["content"] + self._protocol.told_again}]
                unread += 1
            else:
                return Judgement(
                    item_id=item_id,
                    score=verdict.score,
                    correct=verdict.correct,
                    reply=reply,
                    model=model,
                    tries=attempt,
                )
        raise JudgeError(f"{item_id}: no verdict from {self._model} at {self._url}: {failure}")

    def _ask(self, messages: list[dict[str, str]], *, temperature: float) -> tuple[str, str]:
        body = {
            "model": self._model,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": self._protocol.max_tokens,
        }
        response = self._client.post("/chat/completions", json=body)
        if response.status_code != 200:
            raise _Refused(response)
        try:
            content = response.json()
            reply, model = content["choices"][0]["message"]["content"], str(content.get("model", self._model))
        except (ValueError, KeyError, IndexError, TypeError):
            raise _Refused(response) from None
        return reply or "", model


class _Refused(Exception):
    """A response that is no reply."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"{response.status_code}: {response.text[:200]}")
        # What is wrong with the request or the key stays wrong.
        self.is_passing = response.status_code in (200, 408, 409, 429) or response.status_code >= 500
        self.retry_after = response.headers.get("Retry-After")


def _seconds_to_wait(error: Exception, otherwise_s: float) -> float:
    retry_after = getattr(error, "retry_after", None)
    try:
        return min(60.0, float(retry_after)) if retry_after is not None else otherwise_s
    except ValueError:  # a date
        return otherwise_s
