"""What is left to ask, in pieces of one batch; and the two that answer a piece: a model, an endpoint."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linvt.annotations import AnyExtension, MediaFolder
from linvt.evaluation.config import METHOD_KINDS, EvaluateConfig
from linvt.evaluation.endpoint import Endpoint
from linvt.evaluation.questions import Question, prompt_of
from linvt.evaluation.results import Result
from linvt.evaluation.scoring import is_correct

if TYPE_CHECKING:
    from linvt.shards.reader import Cache
    from linvt.video_llm import VideoLLM


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


def open_model(config: EvaluateConfig, *, num_threads: int | None) -> "tuple[VideoLLM, Cache]":
    """The trained model's LLM side, and the frame tokens that it answers from."""
    import torch

    from linvt.shards import read_cache
    from linvt.video_llm import VideoLLM

    assert config.model is not None
    assert config.cache is not None
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    on_gpu = torch.cuda.is_available()
    auto = torch.bfloat16 if on_gpu else torch.float32
    llm = VideoLLM.from_pretrained(
        config.model,
        parts=["llm"],
        dtype=auto if config.dtype == "auto" else getattr(torch, config.dtype),
        device="cuda" if on_gpu else "cpu",
    )
    cache = read_cache(config.cache)
    if cache.hidden_size != llm.backbone.hidden_size:
        raise ValueError(
            f"{config.cache} holds tokens of {cache.hidden_size} channels, {config.model} expects "
            f"{llm.backbone.hidden_size}: they belong to different image-LLMs"
        )
    return llm, cache


def identity_of_model(config: EvaluateConfig) -> dict[str, Any]:
    """What answers depend on beside the questions: the model with its cache, or the endpoint."""
    identity: dict[str, Any] = {"max_new_tokens": config.answer_tokens}
    if config.endpoint is not None:
        asked = {"endpoint": config.endpoint, "model": config.served_model_name}
        return identity | asked | ({} if config.num_frames is None else {"num_frames": config.num_frames})
    from linvt.shards import read_cache
    from linvt.video_llm import read_model_config

    assert config.model is not None
    assert config.cache is not None
    read_model_config(config.model)
    files = [config.model / "config.json", *sorted(config.model.rglob("*.safetensors"))]
    return identity | {
        "model_sha256": sha256_of(files),
        "feature_id": read_cache(config.cache).feature_id,
        "dtype": config.dtype,
    }


def sha256_of(paths: Sequence[Path]) -> str:
    """Of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class ModelAnswerer:
    """Answers pieces with a trained model, from cached frame tokens."""

    def __init__(self, config: EvaluateConfig, *, num_threads: int | None = None) -> None:
        self._llm, self._cache = open_model(config, num_threads=num_threads)
        self._config = config

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
            answers = answer(self._llm, piece.methods, asked, max_new_tokens=self._config.answer_tokens)
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
        self._endpoint = Endpoint(
            config.endpoint, config.served_model_name, key_env=config.api_key_env, num_frames=config.num_frames
        )
        self._config, self._root = config, config.media_root.resolve()
        self._media = MediaFolder(self._root)

    def close(self) -> None:
        self._endpoint.close()

    def __call__(self, piece: Piece) -> list[Result]:
        with ThreadPoolExecutor(max_workers=self._config.batch_size) as pool:
            predictions = list(pool.map(self._ask, piece.questions))
        return [
            score(method, question, prediction, show_choices=self._config.show_choices)
            for method in piece.methods
            for question, prediction in zip(piece.questions, predictions, strict=True)
        ]

    def _ask(self, question: Question) -> str | None:
        name = self._media.find(question.media_id) or question.media_id
        text = prompt_of(question, show_choices=self._config.show_choices)
        max_tokens = self._config.answer_tokens
        return self._endpoint.ask([(question.kind, self._root / name)], text, max_tokens=max_tokens)
