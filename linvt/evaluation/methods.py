"""The ways of answering that an evaluation compares: ours, and what the image-LLM can do without us.

Every method sends the same text; only the media differ. The baselines see the frame tokens of the cache, which are what
the image-LLM would make of these frames, and answer with its weights as they were before LoRA.

Shape legend: T frames, N tokens a frame, C hidden size.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from linvt.answering import Slot, base_weights, embed_prompt, generate
from linvt.shards import CachedVideo
from linvt.training.batches import pad_ids, relative_times
from linvt.video_llm import VideoLLM

UNIFORM_FRAMES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How one kind of question is answered."""

    kind: Literal["video", "image"]
    """The questions it answers."""
    uses_base: bool
    """Whether it answers with the image-LLM before LoRA."""
    part_kind: Literal["video", "image"]
    """The kind of its media parts in the prompt."""
    slots: Callable[[VideoLLM, CachedVideo, Sequence[str]], list[list[Slot]]]
    """Media slots of each question about one video or image."""
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What one question says to the model."""

    text: str
    options: tuple[str, ...] | None = None
    """With options, the answer is one of them, word by word the likeliest; without, it is free."""


def answer(
    llm: VideoLLM, methods: Sequence[str], asked: Iterable[tuple[CachedVideo, Sequence[Prompt]]], *, max_new_tokens: int
) -> dict[str, list[str]]:
    """Each method's answers to all the questions, in their order: one batch a method, greedily.

    `asked` gives media with their questions. One medium's frame tokens are held at a time, and used by every method.
    """
    embeds: dict[str, list[Tensor]] = {name: [] for name in methods}
    options: dict[str, list[list[tuple[int, ...]] | None]] = {name: [] for name in methods}
    for media, prompts in asked:
        for name in methods:
            method = METHODS[name]
            if media.kind != method.kind:
                raise ValueError(f"{media.video_id} was extracted as {media.kind}, {name} answers about {method.kind}s")
            slots_of_prompts = method.slots(llm, media, [prompt.text for prompt in prompts])
            for prompt, slots in zip(prompts, slots_of_prompts, strict=True):
                parts = [{"type": method.part_kind}] * len(slots)
                messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt.text}]}]
                embeds[name].append(embed_prompt(llm, messages, slots))
                options[name].append(_option_ids(llm, messages, prompt.options))
    answers = {}
    for name in methods:
        sampling: dict[str, Any] = {}
        longest = [len(ids) + 1 for ids_of_options in options[name] for ids in ids_of_options or ()]
        if longest:
            sampling["prefix_allowed_tokens_fn"] = only_options(options[name], llm)
        with base_weights(llm) if METHODS[name].uses_base else nullcontext():
            rows = generate(llm, embeds[name], max_new_tokens=max([max_new_tokens, *longest]), **sampling)
        answers[name] = [llm.backbone.decode(row) for row in rows]
    return answers


def only_options(
    options_B: Sequence[Sequence[tuple[int, ...]] | None], llm: VideoLLM
) -> Callable[[int, Tensor], list[int]]:
    """For `generate`: the tokens that may come next in each row, so that its answer ends as one of its options."""
    stop_ids = llm.backbone.stop_ids
    model: Any = llm.backbone.model
    every_id = list(range(model.get_output_embeddings().weight.shape[0]))

    def allowed(row: int, so_far: Tensor) -> list[int]:
        options = options_B[row]
        if options is None:
            return every_id
        begun = tuple(so_far.tolist())
        following = {ids[len(begun)] for ids in options if len(ids) > len(begun) and ids[: len(begun)] == begun}
        # Where an option is complete the row may end; where it has ended, others of the batch still go on.
        return sorted(following.union(stop_ids if begun in options else ())) or stop_ids

    return allowed


def _option_ids(
    llm: VideoLLM, messages: Sequence[dict[str, Any]], options: Sequence[str] | None
) -> list[tuple[int, ...]] | None:
    """Token ids of each option as an answer to the conversation, without the end."""
    if options is None:
        return None
    rows = [llm.backbone.answer_ids(messages, option) for option in options]
    stops = set(llm.backbone.stop_ids)
    return [tuple(itertools.takewhile(lambda token_id: token_id not in stops, row)) for row in rows]


def nearest_frames(media: CachedVideo, times_s: Sequence[float]) -> list[int]:
    """The cached frames nearest to the given times, in time order, each at most once."""
    distance = np.abs(media.timestamps_s[:, None] - np.asarray(times_s)[None, :])
    return sorted(set(distance.argmin(0).tolist()))


@torch.no_grad()
def _linvt(llm: VideoLLM, media: CachedVideo, texts: Sequence[str]) -> list[list[Slot]]:
    # One video, many instructions: what depends on the video alone is computed once.
    ids, mask = pad_ids([llm.backbone.text_ids(text) for text in texts], llm.backbone.pad_id)
    out = llm.encode_instructions(
        media.tokens[None].to(llm.device),
        ids.to(llm.device),
        mask.to(llm.device),
        times=relative_times(media)[None].to(llm.device),
        video_index=torch.zeros(len(texts), dtype=torch.long, device=llm.device),
    )
    return [[Slot(tokens=tokens[valid])] for tokens, valid in zip(out.tokens, out.mask, strict=True)]


def _frames(llm: VideoLLM, media: CachedVideo, frames: Sequence[int]) -> list[Slot]:
    return [Slot(tokens=media.tokens[i].to(llm.device, llm.backbone.dtype)) for i in frames]


def _no_media(llm: VideoLLM, media: CachedVideo, texts: Sequence[str]) -> list[list[Slot]]:
    return [[] for _ in texts]


def _middle_frame(llm: VideoLLM, media: CachedVideo, texts: Sequence[str]) -> list[list[Slot]]:
    return [_frames(llm, media, nearest_frames(media, [media.duration_s / 2]))] * len(texts)


def _uniform_frames(llm: VideoLLM, media: CachedVideo, texts: Sequence[str]) -> list[list[Slot]]:
    times_s = [(i + 0.5) / UNIFORM_FRAMES * media.duration_s for i in range(UNIFORM_FRAMES)]
    return [_frames(llm, media, nearest_frames(media, times_s))] * len(texts)


def _image(llm: VideoLLM, media: CachedVideo, texts: Sequence[str]) -> list[list[Slot]]:
    return [_frames(llm, media, [0])] * len(texts)


_LINVT = Method(
    kind="video", uses_base=False, part_kind="video", slots=_linvt, description="this model, from cached frame tokens"
)
_BASE = replace(_LINVT, uses_base=True, part_kind="image")

METHODS: dict[str, Method] = {
    "linvt": _LINVT,
    "text_only": replace(_BASE, slots=_no_media, description="the image-LLM, without any video"),
    "middle_frame": replace(_BASE, slots=_middle_frame, description="the image-LLM, on the cached frame in the middle"),
    "uniform_frames": replace(
        _BASE, slots=_uniform_frames, description=f"the image-LLM, on {UNIFORM_FRAMES} evenly spread cached frames"
    ),
    "image": Method(
        kind="image", uses_base=False, part_kind="image", slots=_image, description="this model, on image questions"
    ),
    "base_image": Method(
        kind="image", uses_base=True, part_kind="image", slots=_image, description="the image-LLM, on image questions"
    ),
}
