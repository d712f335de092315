"""What the rest of the project asks of an image-LLM.

Shape legend: T frames, H×W pixels, N visual tokens a frame, C hidden size of the LLM, B batch, L sequence length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

MediaKind = Literal["video", "image"]
Message = dict[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": str | [{"type": "text" | "image" | "video", …}]}`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionOptions:
    """Departures from a model's usual vision side. What a cache holds depends on them."""

    full_grid: bool = False
    """Keep every token of a frame where the model pools the frames of a video (Aquila-VL, LLaVA-OneVision)."""
    frame_side: int | None = None
    """Pixels of the square that a video's frames are squeezed to, 448 by default, where a model takes any shape."""
    reset_intermediate: int | None = None
    """Re-initialise the intermediate layer from this seed: the paper's "w/o alignment" (Table 3)."""


PUBLISHED_VISION = VisionOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameTokens:
    """What reaches the LLM of each frame: tokens [T, N, C]; `grid` is (rows, columns), or None for an unordered set."""

    tokens: Tensor
    grid: tuple[int, int] | None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise ValueError(f"frame tokens must be [T, N, C], got {tuple(self.tokens.shape)}")
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens.shape[1]:
            raise ValueError(f"grid {self.grid} does not hold {self.tokens.shape[1]} tokens a frame")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Token ids of a conversation, cut where its media go: media i stands between segments i and i+1."""

    segments: tuple[tuple[int, ...], ...]

    @property
    def before(self) -> tuple[int, ...]:
        return self.segments[0]

    @property
    def after(self) -> tuple[int, ...]:
        return self.segments[-1]


class Backbone(Protocol):
    """An image-LLM, or the part of it that was loaded."""

    name: str
    hidden_size: int
    parts: frozenset[str]
    model: nn.Module

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def stop_ids(self) -> list[int]: ...

    @property
    def max_frame_side(self) -> int:
        """Pixels on the longer side beyond which a decoded frame gains nothing."""
        ...

    def encode_frames(self, frames: np.ndarray, *, batch_size: int = 16, kind: MediaKind = "video") -> FrameTokens:
        """Vision tower and intermediate layer on uint8 RGB [T, H, W, 3], in batches padded to `batch_size`.

        Frames of any video get one grid. An image gets the tokens that the image-LLM itself would see, of one tile.
        """
        ...

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The conversation up to where the assistant speaks, through the model's own chat template."""
        ...

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """What the assistant's turn adds to `prompt(messages)`: the answer and its end."""
        ...

    def question_ids(self, messages: Sequence[Message], question: str) -> list[int]:
        """What a further question adds to an answered conversation: the user's turn, up to where the assistant speaks.

        Raises ValueError where the model's chat template has no second turn.
        """
        ...

    def text_ids(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., C] of token ids [...]."""
        ...

    def hidden_states(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states [B, L, C] of the LLM for embeddings [B, L, C] and a padding mask [B, L], true = valid."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""
        ...

    def generate(self, embeds: Tensor, mask: Tensor, *, max_new_tokens: int, **sampling: Any) -> list[list[int]]:
        """Continues left-padded embeddings [B, L, C]; greedy unless sampling arguments say otherwise."""
        ...

    def new_cache(self) -> Cache:
        """An empty cache of keys and values for `next_logits`."""
        ...

    def next_logits(self, embeds: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] after embeddings [B, L, C] that follow what `cache` holds, which they are added to.

        mask [B, P + L]: which of the P cached and L new tokens are valid; padding is on the left.
        """
        ...

    def lora_targets(self) -> list[str]:
        """Full names, within `model`, of the LLM's linear layers."""
        ...
