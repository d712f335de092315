"""What every adapter shares: a frozen LLM on embeddings, and frames encoded in batches of one size.

Shape legend: T frames, N tokens a frame, C hidden size, B batch, L sequence length.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linvt.backbones.base import FrameTokens, MediaKind, Message, Prompt

PARTS = frozenset({"vision", "llm"})


class FrozenBackbone(nn.Module, ABC):
    """See `Backbone`. A subclass loads `model`, encodes one batch of frames and renders conversations."""

    name: str
    hidden_size: int
    parts: frozenset[str]
    model: Any
    """What holds the LLM and generates; PEFT may wrap it."""

    @property
    @abstractmethod
    def text_tokenizer(self) -> Any: ...

    @property
    @abstractmethod
    def max_frame_side(self) -> int: ...

    @abstractmethod
    def _encode_batch(self, frames: np.ndarray) -> tuple[Tensor, tuple[int, int] | None]:
        """Tokens [T, N, C] of uint8 RGB [T, H, W, 3], and their grid."""

    @abstractmethod
    def prompt(self, messages: Sequence[Message]) -> Prompt: ...

    @abstractmethod
    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The conversation as text, with some mark where media go."""

    def _freeze(self, device: torch.device) -> None:
        self.to(device)
        self.eval()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def pad_id(self) -> int:
        for candidate in (self.text_tokenizer.pad_token_id, self.text_tokenizer.eos_token_id):
            if candidate is not None:
                return candidate
        raise ValueError(f"{self.name}: its text tokenizer has neither a pad nor an end token")

    @property
    def stop_ids(self) -> list[int]:
        stop = self.model.generation_config.eos_token_id
        if stop is None:
            stop = self.text_tokenizer.eos_token_id
        return list(stop) if isinstance(stop, list | tuple) else [stop]

    @torch.no_grad()
    def encode_frames(self, frames: np.ndarray, *, batch_size: int = 16, kind: MediaKind = "video") -> FrameTokens:
        self._need("vision")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
            raise ValueError(f"frames must be uint8 [T>0, H, W, 3], got {frames.dtype} {frames.shape}")
        if kind == "video":
            frames = self.fit_video_frames(frames)
        chunks: list[Tensor] = []
        grid: tuple[int, int] | None = None
        for start in range(0, len(frames), batch_size):
            chunk = frames[start : start + batch_size]
            # A padded batch has the same shape for every video, so its results do not depend on how many frames follow.
            padded = np.concatenate([chunk, np.zeros((batch_size - len(chunk), *chunk.shape[1:]), np.uint8)])
            tokens, grid = self._encode_batch(padded)
            chunks.append(tokens[: len(chunk)])
        tokens_TNC = torch.cat(chunks)
        return (
            self.pool_video_frames(tokens_TNC, grid) if kind == "video" else FrameTokens(tokens=tokens_TNC, grid=grid)
        )

    def compile_vision(self, **options: Any) -> None:
        """Compiles the blocks of the vision tower, with `options` of `torch.compile`.

        Blocks of one shape share one compilation, and what is around them (grids of unlike pictures, mostly) stays as
        it is. Results differ from the uncompiled ones in the last bits.
        """
        self._need("vision")
        decoder = self._base.get_decoder() if "llm" in self.parts else None
        kept_apart = set(decoder.modules()) if decoder is not None else set()
        blocks = [
            block
            for stack in self.modules()
            if isinstance(stack, nn.ModuleList) and stack not in kept_apart
            for block in stack
        ]
        for block in blocks:
            block.compile(**options)

    def fit_video_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames as a video's are shown to the model; a model whose grid follows a picture's shape gives them one."""
        return frames

    def pool_video_frames(self, tokens: Tensor, grid: tuple[int, int] | None) -> FrameTokens:
        """Tokens [T, N, C] as a video's frames have them, where the model's own video path makes fewer of them."""
        return FrameTokens(tokens=tokens, grid=grid)

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        asked = self._render(messages, add_generation_prompt=True)
        turn: Message = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        answered = self._render([*messages, turn], add_generation_prompt=False)
        if not answered.startswith(asked):
            raise ValueError(f"{self.name}: its chat template changes the prompt once it is answered: {answered!r}")
        return self.text_ids(answered[len(asked) :])

    def text_ids(self, text: str) -> list[int]:
        return self.text_tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self.text_tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def embed(self, ids: Tensor) -> Tensor:
        self._need("llm")
        return self.model.get_input_embeddings()(ids)

    def hidden_states(self, embeds: Tensor, mask: Tensor) -> Tensor:
        self._need("llm")
        return self._base.get_decoder()(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=self.position_ids(mask), use_cache=False
        ).last_hidden_state

    def position_ids(self, mask: Tensor) -> Tensor:
        """Running index [B, L] over valid tokens."""
        return (mask.long().cumsum(-1) - 1).clamp(min=0)

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)

    @torch.no_grad()
    def generate(self, embeds: Tensor, mask: Tensor, *, max_new_tokens: int, **sampling: Any) -> list[list[int]]:
        self._need("llm")
        sampling.setdefault("do_sample", False)
        out = self._generator.generate(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=self.stop_ids,
            **sampling,
        )
        stop = set(self.stop_ids)
        answers: list[list[int]] = []
        for row in out.tolist():
            end = next((i for i, token_id in enumerate(row) if token_id in stop), len(row))
            answers.append(row[:end])
        return answers

    def lora_targets(self) -> list[str]:
        self._need("llm")
        decoder = self._base.get_decoder()
        inside = {id(module) for module in decoder.modules() if isinstance(module, nn.Linear)}
        return [name for name, module in self._base.named_modules() if id(module) in inside]

    @property
    def _generator(self) -> Any:
        """What generates from embeddings."""
        return self.model

    @property
    def _base(self) -> Any:
        """The Transformers model, also when PEFT has wrapped it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _need(self, part: str) -> None:
        if part not in self.parts:
            raise ValueError(f"{self.name} was loaded without its {part} part; load_backbone(…, parts={{'{part}'}})")


def attention_for(model_class: Any, dtype: torch.dtype, device: torch.device) -> str:
    """The fastest attention that `model_class` can use: flash_attention_2, sdpa or eager."""
    is_half = dtype in (torch.float16, torch.bfloat16)
    has_flash = device.type == "cuda" and is_half and find_spec("flash_attn") is not None
    if has_flash and getattr(model_class, "_supports_flash_attn", False):
        return "flash_attention_2"
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def checked_parts(parts: Collection[str]) -> frozenset[str]:
    """Raises ValueError unless they are "vision", "llm" or both."""
    if not parts or not PARTS.issuperset(parts):
        raise ValueError(f"parts must be a non-empty subset of {sorted(PARTS)}, got {sorted(parts)}")
    return frozenset(parts)


def is_media(part: Any) -> bool:
    """Whether a part of a message's content is an image or a video."""
    return isinstance(part, dict) and part.get("type") in ("image", "video")


def cut_at(ids: Sequence[int], slot_id: int) -> Prompt:
    """A prompt cut where `slot_id` stands."""
    segments: list[list[int]] = [[]]
    for token_id in ids:
        if token_id == slot_id:
            segments.append([])
        else:
            segments[-1].append(token_id)
    return Prompt(segments=tuple(map(tuple, segments)))
