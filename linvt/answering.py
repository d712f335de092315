"""From a conversation with media to an answer, in steps that serving and evaluation share.

Shape legend: T frames, N tokens a frame, Q visual tokens of one slot, R answer tokens, L sequence length,
C hidden size.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from linvt.evidence import as_weights, frame_token_gains, integrated_gradients
from linvt.shards import CachedVideo
from linvt.video_llm import VideoLLM, instruction_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """What the LLM sees in the place of one medium: tokens [Q, C]; for a video on request the map W [Q, T·N]."""

    tokens: Tensor
    map: Tensor | None = None


@torch.no_grad()
def fill_slots(
    llm: VideoLLM, messages: Sequence[dict[str, Any]], media: Sequence[CachedVideo], *, return_maps: bool = False
) -> list[Slot]:
    """A slot per medium, in order. Videos go through LinVT under the last user turn's text; images go past it."""
    instruction = instruction_of(messages)
    slots = []
    for item in media:
        if item.kind == "image":
            slots.append(Slot(tokens=item.tokens[0].to(llm.device, llm.backbone.dtype)))
            continue
        out = llm.video_tokens(item, instruction, return_map=return_maps)
        valid_Q = out.mask[0]
        slots.append(Slot(tokens=out.tokens[0][valid_Q], map=None if out.map is None else out.map[0][valid_Q]))
    return slots


@torch.no_grad()
def embed_prompt(llm: VideoLLM, messages: Sequence[dict[str, Any]], slots: Sequence[Slot]) -> Tensor:
    """Input embeddings [L, C] of a conversation with its media slots filled.

    Raises ValueError where the conversation's media parts and the slots differ in number, or a text imitates a part.
    """
    return splice(llm, llm.backbone.prompt(messages).segments, [slot.tokens for slot in slots])


def splice(llm: VideoLLM, segments: Sequence[Sequence[int]], media: Sequence[Tensor]) -> Tensor:
    """[L, C]: embedded text segments with media [Q, C] between them."""
    return llm._splice(segments, media)


@torch.no_grad()
def generate(llm: VideoLLM, prompts: Sequence[Tensor], *, max_new_tokens: int, **sampling: Any) -> list[list[int]]:
    """New token ids, without the stop token, for embedded prompts [L, C] of any lengths, generated together."""
    length = max(len(prompt) for prompt in prompts)
    embeds_BLC = torch.stack([F.pad(prompt, (0, 0, length - len(prompt), 0)) for prompt in prompts])
    lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    mask_BL = (torch.arange(length) >= length - lengths_B[:, None]).to(llm.device)
    return llm.backbone.generate(embeds_BLC, mask_BL, max_new_tokens=max_new_tokens, **sampling)


def frame_token_weights(
    llm: VideoLLM,
    messages: Sequence[dict[str, Any]],
    slots: Sequence[Slot],
    media: Sequence[CachedVideo],
    answer_ids: Sequence[int],
    *,
    per_answer_token: bool = False,
) -> list[Tensor | None]:
    """The evidence of an answer: for each slot with a map, the weight [1, T, N] of every frame token; None for others.

    With `per_answer_token`, [1 + R, T, N]: the whole answer, then each of its R tokens. Each of them is ≥ 0 and sums to
    1; see `linvt.evidence`. A slot's tokens vary while those of the others stay.
    """
    tokens = [slot.tokens.detach() for slot in slots]
    weights: list[Tensor | None] = []
    for i, (slot, item) in enumerate(zip(slots, media, strict=True)):
        if slot.map is None:
            weights.append(None)
            continue

        def log_probs(varied_QC: Tensor, i: int = i) -> Tensor:
            return llm.answer_log_probs(messages, [*tokens[:i], varied_QC, *tokens[i + 1 :]], answer_ids)

        gradients = integrated_gradients(log_probs, tokens[i], per_answer_token=per_answer_token)
        if per_answer_token:
            gradients = torch.cat([gradients.sum(0, keepdim=True), gradients])
        gains = frame_token_gains(gradients, tokens[i], slot.map, item.tokens.to(llm.device))
        weights.append(as_weights(gains, slot.map))
    return weights


def base_weights(llm: VideoLLM) -> AbstractContextManager[Any]:
    """Within it, the LLM is the image-LLM as it was before LoRA."""
    model = llm.backbone.model
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
