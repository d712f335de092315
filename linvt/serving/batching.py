"""Answers to several requests generated together: rows join a batch and leave it between two tokens.

What a row says does not depend on the rows beside it, up to the rounding of sums: a prompt is read alone, and padding
is masked.

Shape legend: B rows, P cached tokens, L prompt tokens, C hidden size.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from linvt.backbones import Backbone
from linvt.serving.sampling import Choice, Sampling, TokenChooser

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """An answer's token ids, without the stop token, and why it ended."""

    ids: list[int]
    finish_reason: Literal["stop", "length"]


@dataclass(kw_only=True, slots=True)
class Row:
    """One answer to be generated."""

    prompt: Tensor
    """Embeddings [L, C]."""
    max_new_tokens: int
    sampling: Sampling
    on_token: Callable[[Choice], bool]
    """Told of every token of the answer, in the batcher's thread. True ends the answer with this token."""
    on_end: Callable[[], None] = lambda: None
    """Told when there will be no more, before the future is."""
    is_cancelled: Callable[[], bool] = lambda: False
    """Whether nobody waits for the answer any more; it then ends at once."""
    future: Future[Generated] = field(default_factory=Future)


class Batcher:
    """A thread that generates rows of one LLM, at most `max_rows` at a time, in the order they came."""

    def __init__(self, backbone: Backbone, *, max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self._backbone, self._max_rows = backbone, max_rows
        self._batch = _Batch(backbone)
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.num_steps = self.num_tokens = 0
        """Passes of the LLM after prompts, and tokens that came of them. Their ratio is how full batches were."""
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, row: Row) -> Future[Generated]:
        """The row's future, which also tells of an error in the row's own generation."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(row)
            self._changed.notify()
        return row.future

    def close(self) -> None:
        """Ends the thread; rows that are not done are cancelled or fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._batch.rows)
                if self._closed:
                    break
            self._let_in()
            if self._batch.rows:
                self.num_steps += 1
                self.num_tokens += len(self._batch.rows)
                self._guarded(self._batch.step)
        for row in self._waiting:
            row.future.cancel()
        self._fail(RuntimeError("the batcher was closed"))

    def _let_in(self) -> None:
        while self._waiting and len(self._batch.rows) < self._max_rows and self._batch.can_join:
            row = self._waiting.popleft()
            if row.is_cancelled():
                row.future.cancel()
            elif row.future.set_running_or_notify_cancel():
                try:
                    self._batch.join(row)
                except Exception as error:
                    row.future.set_exception(error)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # of the model or its memory: the rows share their fate
            logger.exception("a batch failed")
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        for active in self._batch.rows:
            active.row.future.set_exception(error)
        self._batch = _Batch(self._backbone)


class _ActiveRow:
    """A row in a batch, whose last token the LLM has not read yet."""

    def __init__(self, row: Row, stop_ids: set[int], device: torch.device) -> None:
        self.row, self._stop_ids = row, stop_ids
        self.ids: list[int] = []
        self.choose = TokenChooser(row.sampling, device)

    def take(self, choice: Choice) -> bool:
        """Whether the answer goes on after this token."""
        row, reason = self.row, None
        if choice.token_id in self._stop_ids:
            reason = "stop"
        else:
            self.ids.append(choice.token_id)
            if row.on_token(choice):
                reason = "stop"
            elif len(self.ids) >= row.max_new_tokens:
                reason = "length"
        if reason is None and row.is_cancelled():
            reason = "stop"
        if reason is not None:
            row.on_end()
            row.future.set_result(Generated(ids=self.ids, finish_reason=reason))
        return reason is None


class _Batch:
    """Rows with one cache of keys and values, padded on the left."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self._stop_ids = backbone, set(backbone.stop_ids)
        self.rows: list[_ActiveRow] = []
        self._cache: Cache | None = None
        self._mask_BP = torch.zeros(0, 0, dtype=torch.bool, device=backbone.device)

    @property
    def can_join(self) -> bool:
        """False while a row of a model with other states than keys and values is at work: it stays alone."""
        return self._cache is None or all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def join(self, row: Row) -> None:
        """Reads the prompt and chooses its first token; the row joins unless that was the last one."""
        cache = self._backbone.new_cache()
        mask_1L = torch.ones(1, len(row.prompt), dtype=torch.bool, device=self._backbone.device)
        logits_1V = self._backbone.next_logits(row.prompt[None], mask_1L, cache)
        active = _ActiveRow(row, self._stop_ids, self._backbone.device)
        if not active.take(active.choose(logits_1V[0], [])):
            return
        if self._cache is None:
            self._cache, self._mask_BP = cache, mask_1L
        else:
            self._merge(self._cache, cache, mask_1L)
        self.rows.append(active)

    def step(self) -> None:
        """One more token for each row; rows that are done leave."""
        assert self._cache is not None
        last_B1 = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._backbone.device)
        self._mask_BP = F.pad(self._mask_BP, (0, 1), value=True)
        logits_BV = self._backbone.next_logits(self._backbone.embed(last_B1), self._mask_BP, self._cache)
        likeliest = logits_BV.argmax(-1).tolist()
        staying: list[int] = []
        for i, (row, token_id) in enumerate(zip(self.rows, likeliest)):
            try:
                plain = row.row.sampling.is_plain
                choice = Choice(token_id=token_id) if plain else row.choose(logits_BV[i], row.ids)
                if row.take(choice):
                    staying.append(i)
            except Exception as error:
                row.row.future.set_exception(error)
        if len(staying) < len(self.rows):
            self._keep(staying)

    def _merge(self, cache: Cache, other: Cache, other_mask: Tensor) -> None:
        length = max(self._mask_BP.shape[1], other_mask.shape[1])
        for mine, theirs in zip(cache.layers, other.layers, strict=True):
            for name in ("keys", "values"):
                pair = [_padded(getattr(layer, name), length) for layer in (mine, theirs)]
                setattr(mine, name, torch.cat(pair))
        masks = [F.pad(mask, (length - mask.shape[1], 0)) for mask in (self._mask_BP, other_mask)]
        self._mask_BP = torch.cat(masks)

    def _keep(self, indices: list[int]) -> None:
        self.rows = [self.rows[i] for i in indices]
        if not indices:
            self._cache = None
            return
        assert self._cache is not None
        index_B = torch.tensor(indices, device=self._mask_BP.device)
        # What only the rows that left had on the left is padding to all others.
        self._mask_BP = self._mask_BP[index_B]
        start = int(self._mask_BP.any(0).int().argmax())
        self._mask_BP = self._mask_BP[:, start:]
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                setattr(layer, name, getattr(layer, name)[index_B, :, start:])


def _padded(states_BHPD: Tensor, length: int) -> Tensor:
    return F.pad(states_BHPD, (0, 0, length - states_BHPD.shape[2], 0))
