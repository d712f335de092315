"""How the next token of one answer is chosen: OpenAI's and vLLM's parameters, with a random state of its own.

Shape legend: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Greedy unless there is a temperature. Penalties look at the answer's own tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    """None: another answer each time."""
    num_log_probs: int | None = None
    """How many alternatives to report of every token, beside the token's own log-probability; None: report nothing."""

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token, as the model has it, is all that is asked for."""
        return replace(self, seed=None) == Sampling()


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A token of an answer. Log-probabilities in nats, of the model itself: before penalties and temperature."""

    token_id: int
    log_prob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    """(token, log-probability), likeliest first."""


class TokenChooser:
    """Chooses the tokens of one answer, one after the other."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._warpers = LogitsProcessorList(_warpers(sampling))
        self._repetition: Any = None
        if sampling.repetition_penalty != 1:
            self._repetition = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)

    def __call__(self, logits_V: Tensor, ids: Sequence[int]) -> Choice:
        """The next token of an answer that is `ids` so far."""
        scores_V = self._penalised(logits_V.float(), ids)
        if self._sampling.temperature:
            probabilities_1V = self._warpers(torch.empty(1, 0), scores_V[None]).softmax(-1)  # pyright: ignore
            token_id = int(torch.multinomial(probabilities_1V[0], 1, generator=self._generator))
        else:
            token_id = int(scores_V.argmax())
        if self._sampling.num_log_probs is None:
            return Choice(token_id=token_id)
        log_probs_V = logits_V.float().log_softmax(-1)
        best = log_probs_V.topk(min(self._sampling.num_log_probs, len(log_probs_V)))
        return Choice(
            token_id=token_id,
            log_prob=float(log_probs_V[token_id]),
            alternatives=tuple(zip(best.indices.tolist(), best.values.tolist())),
        )

    def _penalised(self, scores_V: Tensor, ids: Sequence[int]) -> Tensor:
        sampling = self._sampling
        if not ids:
            return scores_V
        ids_R = torch.tensor(ids, device=scores_V.device)
        if self._repetition is not None:
            scores_V = self._repetition(ids_R[None], scores_V[None])[0]
        if sampling.presence_penalty or sampling.frequency_penalty:
            counts_V = torch.bincount(ids_R, minlength=len(scores_V))
            scores_V = scores_V - sampling.frequency_penalty * counts_V - sampling.presence_penalty * (counts_V > 0)
        return scores_V


def _warpers(sampling: Sampling) -> list[Any]:
    if not sampling.temperature:
        return []
    warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers
