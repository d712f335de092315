"""What is left to ask, in pieces of one batch; and the two that answer a piece: a model, an endpoint."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import httpx

from linvt.annotations import AnyExtension, MediaFolder
from linvt.evaluation.config import METHOD_KINDS, EvaluateConfig
from linvt.evaluation.questions import Question, prompt_of
from linvt.evaluation.results import Result
from linvt.evaluation.scoring import is_correct

# The first question about a long video waits for its decoding, and behind others' questions.
_PATIENCE_S = 1800


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Questions, those about one medium one after the other, that each of the methods answers."""

    methods: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def num_answers(self) -> int:
        return len(self.methods) * len(self.questions)


def pieces_of(
    questions: Sequence[Question], methods: Sequence[str], done: set[tuple[str, str]], *, batch_size: int
) -> Iterator[Piece]:
    """What `done`, pairs of method and question id, leaves to do: every pair once, `batch_size` questions a piece."""
    left: dict[tuple[str, ...], list[Question]] = {}
    for question in sorted(questions, key=lambda question: question.media_id):
        of_kind = [method for method in methods if METHOD_KINDS[method] == question.kind]
        missing = tuple(method for method in of_kind if (method, question.question_id) not in done)
        if missing:
            left.setdefault(missing, []).append(question)
    for missing, asked in left.items():
        for start in range(0, len(asked), batch_size):
            yield Piece(methods=missing, questions=tuple(asked[start : start + batch_size]))


def score(method: str, question: Question, prediction: str | None, *, show_choices: bool) -> Result:
    """A scored answer; a prediction of None says that there was no medium to ask about."""
    shown = question.choices if show_choices else None
    return Result(
        method=method,
        question_id=question.question_id,
        media_id=question.media_id,
        kind=question.kind,
        family=question.family,
        question=question.question,
        answer=question.answer,
        prediction=prediction,
        correct=prediction is not None and is_correct(prediction, question.answer, shown_choices=shown),
    )


class ModelAnswerer:
    """Answers pieces with a trained model, from cached frame tokens."""

    def __init__(self, config: EvaluateConfig, *, num_threads: int | None = None) -> None:
        import torch

        from linvt.shards import read_cache
        from linvt.video_llm import VideoLLM

        assert config.model is not None
        assert config.cache is not None
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        on_gpu = torch.cuda.is_available()
        auto = torch.bfloat16 if on_gpu else torch.float32
        self._llm = VideoLLM.from_pretrained(
            config.model,
            parts=["llm"],
            dtype=auto if config.dtype == "auto" else getattr(torch, config.dtype),
            device="cuda" if on_gpu else "cpu",
        )
        self._cache, self._config = read_cache(config.cache), config
        if self._cache.hidden_size != self._llm.backbone.hidden_size:
            raise ValueError(
                f"{config.cache} holds tokens of {self._cache.hidden_size} channels, {config.model} expects "
                f"{self._llm.backbone.hidden_size}: they belong to different image-LLMs"
            )

    def __call__(self, piece: Piece) -> list[Result]:
        from linvt.evaluation.methods import Prompt, answer

        def prompt(question: Question) -> Prompt:
            text = prompt_of(question, show_choices=self._config.show_choices)
            return Prompt(text=text, options=question.choices if self._config.answers == "choices" else None)

        key_of = AnyExtension(self._cache.video_ids)
        present = [question for question in piece.questions if question.media_id in key_of]
        asked = (
            (self._cache.get(key_of[media_id]), [prompt(question) for question in group])
            for media_id, group in groupby(present, key=lambda question: question.media_id)
        )
        answers: dict[str, list[str]] = {method: [] for method in piece.methods}
        if present:
            answers = answer(self._llm, piece.methods, asked, max_new_tokens=self._config.max_new_tokens)
        results = []
        for method in piece.methods:
            texts = dict(zip([question.question_id for question in present], answers[method], strict=True))
            results += [
                score(method, question, texts.get(question.question_id), show_choices=self._config.show_choices)
                for question in piece.questions
            ]
        return results


class EndpointAnswerer:
    """Answers pieces through an OpenAI-compatible endpoint, which reads the media itself."""

    def __init__(self, config: EvaluateConfig) -> None:
        assert config.endpoint is not None
        assert config.media_root is not None
        headers = {}
        if config.api_key_env is not None:
            if not os.environ.get(config.api_key_env):
                raise ValueError(f"--api-key-env {config.api_key_env}: this environment variable is not set")
            headers["Authorization"] = f"Bearer {os.environ[config.api_key_env]}"
        self._client = httpx.Client(base_url=config.endpoint.rstrip("/"), headers=headers, timeout=_PATIENCE_S)
        self._config, self._root = config, config.media_root.resolve()
        self._media = MediaFolder(self._root)

    def __call__(self, piece: Piece) -> list[Result]:
        with ThreadPoolExecutor(max_workers=self._config.batch_size) as pool:
            predictions = list(pool.map(self._ask, piece.questions))
        return [
            score(method, question, prediction, show_choices=self._config.show_choices)
            for method in piece.methods
            for question, prediction in zip(piece.questions, predictions, strict=True)
        ]

    def _ask(self, question: Question) -> str | None:
        part = f"{question.kind}_url"
        name = self._media.find(question.media_id) or question.media_id
        media = {"type": part, part: {"url": (self._root / name).as_uri()}}
        text = prompt_of(question, show_choices=self._config.show_choices)
        body = {
            "model": self._config.served_model_name,
            "messages": [{"role": "user", "content": [media, {"type": "text", "text": text}]}],
            "max_tokens": self._config.max_new_tokens,
            "temperature": 0,
            "linvt": {"evidence": False},
        }
        response = self._post_until_admitted(body)
        if response.status_code == 422:  # this medium cannot be decoded: it is missing for every method
            return None
        if response.status_code != 200:
            raise ValueError(f"{self._config.endpoint} answered {response.status_code}: {response.text[:500]}")
        return response.json()["choices"][0]["message"]["content"]

    def _post_until_admitted(self, body: dict[str, Any]) -> httpx.Response:
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            try:
                response = self._client.post("/chat/completions", json=body)
            except httpx.TransportError as error:
                raise RuntimeError(f"{self._config.endpoint} cannot be reached: {error}") from error
            if response.status_code != 503 or time.monotonic() > give_up_at:
                return response
            time.sleep(float(response.headers.get("Retry-After", 1)))
