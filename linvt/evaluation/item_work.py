"""Answering a benchmark's items: with a trained model, from cached frame tokens, or through an endpoint."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from linvt.annotations import AnyExtension, MediaFolder
from linvt.evaluation.config import EvaluateConfig
from linvt.evaluation.endpoint import Endpoint
from linvt.evaluation.entry import Item, Medium
from linvt.evaluation.work import open_model


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemAnswer:
    """What was answered: a line of answers.jsonl. None where a medium is missing or cannot be decoded."""

    item_id: str
    prediction: str | None


class ModelItemAnswerer:
    """Answers greedily, some items at a time; each sees its media's cached frame tokens."""

    def __init__(self, config: EvaluateConfig, *, num_threads: int | None = None) -> None:
        self._llm, self._cache = open_model(config, num_threads=num_threads)
        self._config = config
        self._key_of = AnyExtension(self._cache.video_ids)

    def __call__(self, items: Sequence[Item]) -> list[ItemAnswer]:
        predictions: list[str | None] = [None] * len(items)
        asked = [i for i, item in enumerate(items) if all(self._name(medium) in self._key_of for medium in item.media)]
        conversations = [
            (
                [{"role": "user", "content": [*parts, {"type": "text", "text": items[i].prompt}]}],
                [self._cache.get(self._key_of[self._name(medium)]) for medium in items[i].media],
            )
            for i in asked
            for parts in [[{"type": medium.kind} for medium in items[i].media]]
        ]
        if conversations:
            rows = self._llm.generate_batch(conversations, max_new_tokens=self._config.answer_tokens)
            for i, row in zip(asked, rows, strict=True):
                predictions[i] = self._llm.backbone.decode(row)
        return [
            ItemAnswer(item_id=item.item_id, prediction=prediction)
            for item, prediction in zip(items, predictions, strict=True)
        ]

    def _name(self, medium: Medium) -> str:
        return self._config.media_prefix + medium.path


class EndpointItemAnswerer:
    """Answers through an OpenAI-compatible endpoint, which reads the media itself."""

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

    def __call__(self, items: Sequence[Item]) -> list[ItemAnswer]:
        with ThreadPoolExecutor(max_workers=self._config.batch_size) as pool:
            predictions = list(pool.map(self._ask, items))
        return [
            ItemAnswer(item_id=item.item_id, prediction=prediction)
            for item, prediction in zip(items, predictions, strict=True)
        ]

    def _ask(self, item: Item) -> str | None:
        found = [(medium.kind, self._media.find(self._config.media_prefix + medium.path)) for medium in item.media]
        media = [(kind, self._root / name) for kind, name in found if name is not None]
        if len(media) < len(found):
            return None
        return self._endpoint.ask(media, item.prompt, max_tokens=self._config.answer_tokens)
