"""From visits to the tensors of one step.

A visit brings one video (or image) with one or more questions. Each question by itself is a sequence of its own,
because the video tokens depend on the instruction; what depends on the video alone is computed once. For conversations
of several turns see `linvt.training.sequences`.

Shape legend: V videos, I images, T frames, N tokens a frame, C hidden size, B sequences, L instruction tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from linvt.annotations import Turn, conversations
from linvt.backbones import Backbone
from linvt.shards import CachedVideo
from linvt.training.sequences import (
    DEFAULT_RULES,
    IGNORE_INDEX,
    SequenceRules,
    TokenSequence,
    num_visual_tokens,
    sequences_of,
)

# Stage 1 asks the same thing of every video: TTA must not see the caption that the LLM has to write.
CAPTION_INSTRUCTION = "describe the video"


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """A sample of training: what is cached of a video, and what is asked about it."""

    video: CachedVideo
    turns: tuple[Turn, ...]
    caption: str | None = None
    """Set where the contrastive loss wants it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    tokens: Tensor
    """[V, T, N, C], zero where `frame_mask` is false."""
    frame_mask: Tensor
    """[V, T] bool."""
    times: Tensor
    """[V, T] in [0, 1]."""
    images: tuple[Tensor, ...]
    """[N, C] each, N the image's own: they go past LinVT untouched."""
    sequences: tuple[TokenSequence, ...]
    """B sequences, those about videos first."""
    media_index: Tensor
    """[B] int64: which video (or, past the videos' sequences, which image) a sequence is about."""
    num_video_sequences: int
    instructions: Tensor
    """[B_video, L] ids of each video sequence's instruction."""
    instruction_mask: Tensor
    captions: Tensor
    """[V, L'] ids for the contrastive loss; L' = 0 where no visit brought a caption."""
    caption_mask: Tensor
    video_ids: Tensor
    """[V] int64, equal for visits to one video."""

    @property
    def answer_tokens(self) -> int:
        """Labelled tokens of all sequences."""
        return sum(label != IGNORE_INDEX for sequence in self.sequences for label in sequence.labels)

    @property
    def answers_cut(self) -> int:
        """Answers that the limits on tokens cut or dropped."""
        return sum(sequence.num_cut for sequence in self.sequences)

    def to(self, device: torch.device | str) -> "Batch":
        fields = {name: getattr(self, name) for name in self.__slots__}
        moved: dict[str, Any] = {name: f.to(device) for name, f in fields.items() if isinstance(f, Tensor)}
        return replace(self, images=tuple(image.to(device) for image in self.images), **moved)


def collate(visits: Sequence[Visit], backbone: Backbone, rules: SequenceRules = DEFAULT_RULES) -> Batch:
    """One step's tensors, on the CPU, in the cache's dtype. Raises ValueError on videos of unlike token counts."""
    videos = [visit for visit in visits if visit.video.kind == "video"]
    images = [visit for visit in visits if visit.video.kind == "image"]
    shapes = {tuple(visit.video.tokens.shape[1:]) for visit in videos}
    if len(shapes) > 1:
        raise ValueError(f"videos in a batch must share one [N, C], got {sorted(shapes)}; batch each grid apart")
    (n, c) = shapes.pop() if shapes else visits[0].video.tokens.shape[1:]
    longest = max((len(visit.video.tokens) for visit in videos), default=1)
    dtype = visits[0].video.tokens.dtype
    tokens = torch.zeros(len(videos), longest, n, c, dtype=dtype)
    frame_mask = torch.zeros(len(videos), longest, dtype=torch.bool)
    times = torch.zeros(len(videos), longest)
    for i, visit in enumerate(videos):
        t = len(visit.video.tokens)
        tokens[i, :t], frame_mask[i, :t] = visit.video.tokens, True
        times[i, :t] = relative_times(visit.video)
    sequences: list[TokenSequence] = []
    media_index: list[int] = []
    instructions: list[list[int]] = []
    for i, visit in (*enumerate(videos), *enumerate(images)):
        new = _sequences_of_visit(visit, backbone, rules)
        sequences += new
        media_index += [i] * len(new)
        if visit.video.kind == "video":
            instructions += [backbone.text_ids(sequence.instruction) for sequence in new]
    has_captions = bool(videos) and all(visit.caption for visit in videos)
    captions = [
        backbone.text_ids(visit.caption or "")[: rules.max_answer_tokens] if has_captions else [] for visit in videos
    ]
    instruction_ids, instruction_mask = pad_ids(instructions, backbone.pad_id)
    caption_ids, caption_mask = pad_ids(captions, backbone.pad_id)
    return Batch(
        tokens=tokens,
        frame_mask=frame_mask,
        times=times,
        images=tuple(visit.video.tokens[0] for visit in images),
        sequences=tuple(sequences),
        media_index=torch.tensor(media_index, dtype=torch.long),
        num_video_sequences=len(instructions),
        instructions=instruction_ids,
        instruction_mask=instruction_mask,
        captions=caption_ids,
        caption_mask=caption_mask,
        video_ids=torch.tensor([int(visit.video.key[:15], 16) for visit in videos], dtype=torch.long),
    )


def _sequences_of_visit(visit: Visit, backbone: Backbone, rules: SequenceRules) -> list[TokenSequence]:
    kind, (num_frames, tokens_per_frame, _) = visit.video.kind, visit.video.tokens.shape
    num_visual = num_visual_tokens(rules, kind=kind, num_frames=num_frames, tokens_per_frame=tokens_per_frame)
    return [
        sequence
        for conversation in conversations(visit.turns)
        for sequence in sequences_of(backbone, conversation, kind=kind, num_visual=num_visual, rules=rules)
    ]


def relative_times(video: CachedVideo) -> Tensor:
    """[T] in [0, 1]: each frame's place in its video, whatever the frame rate or length."""
    timestamps_s = torch.as_tensor(video.timestamps_s, dtype=torch.float64)
    duration_s = max(float(video.duration_s), float(timestamps_s.max()), 1e-9)
    return (timestamps_s / duration_s).clamp(0, 1).float()


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids [B, L] and their mask."""
    length = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[*row, *[pad_id] * (length - len(row))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows], dtype=torch.bool)
    return ids.reshape(len(rows), length), mask.reshape(len(rows), length)
