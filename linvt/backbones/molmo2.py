"""Molmo 2 by the generic adapter, and the token that its image features are added to.

Shape legend: T frames, N tokens a frame, C hidden size.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from linvt.backbones.base import Message
from linvt.backbones.checkpoint import Checkpoint
from linvt.backbones.generic import GenericBackbone
from linvt.backbones.published import Config, read_config

# Rows of the LLM's embedding, one table behind the other as Transformers puts them together; or one table for all.
_EMBEDDING = ("wte.embedding", "wte.new_embedding", "embed_tokens.weight")


class Molmo2Backbone(GenericBackbone):
    """See `GenericBackbone`. Molmo 2 adds its features to the embedding of the token `<im_patch>`, the `image_token`
    [C] here: with it added to them, frame tokens are what the LLM reads, and so are averages of them with weights that
    sum to 1. Frames go the way of images, pooled 2×2; its own video path would pool 3×3."""

    image_token: Tensor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if "vision" in self.parts:
            _, row_1C = _image_token(read_config(self._directory), Checkpoint(self._directory))
            # Not persistent: it is a row of the LLM's embedding.
            self.register_buffer("image_token", row_1C[0].to(self.device, self.dtype), persistent=False)

    @classmethod
    def vision_tensors(cls, config: Config, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
        yield from super().vision_tensors(config, checkpoint)
        yield _image_token(config, checkpoint)

    def _frame_tokens(self, inputs: Any, num_frames: int) -> Tensor:
        return super()._frame_tokens(inputs, num_frames) + self.image_token

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        text = super()._render(messages, add_generation_prompt=add_generation_prompt)
        end = self.text_tokenizer.eos_token
        # Its processor begins a conversation so, but is not asked where there are no images.
        begin = self.text_tokenizer.bos_token or end
        text = text if text.startswith(begin) else begin + text
        # Its chat template ends an answer only when the next question follows.
        answered = messages[-1]["role"] == "assistant" and not add_generation_prompt
        return text + end if answered and not text.rstrip().endswith(end) else text


def _image_token(config: Config, checkpoint: Checkpoint) -> tuple[str, Tensor]:
    """The name of the tensor that holds the embedding of the image token, and that row alone, [1, C]."""
    row = token_id = config["image_patch_id"]
    for name in (name for table in _EMBEDDING for name in checkpoint.names if name.endswith(table)):
        if row < (num_rows := checkpoint.num_rows(name)):
            return name, checkpoint.read_rows(name, row, row + 1)
        row -= num_rows
    raise ValueError(f"{checkpoint.directory}: no embedding of the image token {token_id}; expected it in {_EMBEDDING}")
