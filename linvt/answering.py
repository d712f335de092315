"""From a conversation with media to an answer, in steps that serving and evaluation share.

Shape legend: T frames, N tokens a frame, Q visual tokens of one slot, L sequence length, C hidden size.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

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


def frame_weights(
    llm: VideoLLM, messages: Sequence[dict[str, Any]], slots: Sequence[Slot], answer_ids: Sequence[int]
) -> list[Tensor | None]:
    """For each slot with a map, the weight [T·N] of every frame token in the answer; None for slots without one.

    The exact map W says how much of each frame token every video token holds. How much the answer hung on a video token
    is |gradient · token| of the answer's log-probability. Their product, normalised, is ≥ 0 and sums to 1 in each slot.
    """
    leaves = [slot.tokens.detach().clone().requires_grad_(slot.map is not None) for slot in slots]
    traced = [leaf for leaf in leaves if leaf.requires_grad]
    if not traced:
        return [None] * len(slots)
    gradients = _gradients(llm, messages, leaves, traced, answer_ids) if answer_ids else [None] * len(traced)
    weights = []
    remaining = iter(gradients)
    for slot, leaf in zip(slots, leaves, strict=True):
        if slot.map is None:
            weights.append(None)
            continue
        gradient = next(remaining)
        use_Q = torch.ones(len(leaf), device=leaf.device)
        if gradient is not None and bool((gradient != 0).any()):
            use_Q = (gradient.float() * leaf.detach().float()).sum(-1).abs()
        weights_S = use_Q @ slot.map.float()
        weights.append(weights_S / weights_S.sum().clamp(min=torch.finfo(torch.float32).tiny))
    return weights


def _gradients(
    llm: VideoLLM, messages: Any, leaves: Sequence[Tensor], traced: Sequence[Tensor], answer_ids: Sequence[int]
) -> list[Tensor | None]:
    *segments, last = llm.backbone.prompt(messages).segments
    with torch.enable_grad():
        embeds_LC = splice(llm, [*segments, (*last, *answer_ids)], leaves)
        mask_1L = torch.ones(1, len(embeds_LC), dtype=torch.bool, device=llm.device)
        hidden_LC = llm.backbone.hidden_states(embeds_LC[None], mask_1L)[0]
        logits = llm.backbone.head(hidden_LC[-len(answer_ids) - 1 : -1]).float()
        nll = F.cross_entropy(logits, torch.tensor(answer_ids, device=llm.device))
        return list(torch.autograd.grad(nll, traced, allow_unused=True))


def base_weights(llm: VideoLLM) -> AbstractContextManager[Any]:
    """Within it, the LLM is the image-LLM as it was before LoRA."""
    model = llm.backbone.model
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
