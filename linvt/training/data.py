"""What a run trains on: annotations joined with the cache, as visits, and batches read ahead of their use."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from linvt.annotations import Annotation, AnyExtension, Turn
from linvt.shards import Cache
from linvt.training.batches import CAPTION_INSTRUCTION, Visit


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedVisit:
    """A sample of training before its frame tokens are read."""

    key: str
    turns: tuple[Turn, ...]
    caption: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """An annotated video or image that the run cannot train on, and why."""

    media_id: str
    reason: Literal["not in the cache", "no caption", "no question", "an image, in stage 1", "a section of a video"]


@dataclass(frozen=True, slots=True, eq=False)
class VisitSet:
    """The samples of a run, numbered in the order of the cache, whatever the order of the annotations."""

    cache: Cache
    visits: tuple[PlannedVisit, ...]
    left_out: tuple[LeftOut, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.visits)

    @property
    def shards(self) -> np.ndarray:
        """int64 [S]: the shard that holds each visit's tokens."""
        return self._column("shard")

    @property
    def is_image(self) -> np.ndarray:
        """bool [S]: images go past LinVT."""
        kinds = self.cache.index["kind"].to_pylist()
        return np.array([kinds[row] == "image" for row in self._rows()])

    @property
    def lengths(self) -> np.ndarray:
        """int64 [S]: how many frames each visit has. Images count as middling videos, so batches mix both."""
        frames, is_image = self._column("num_frames"), self.is_image
        middling = int(np.median(frames[~is_image])) if not is_image.all() else 1
        return np.where(is_image, middling, frames)

    @property
    def fingerprint(self) -> str:
        """Equal where the visits are, and all that their order depends on: a resumed run must find what it left."""
        digest = hashlib.sha256(self.cache.feature_id.encode())
        digest.update(np.stack([self.shards, self.lengths, self.is_image]).astype("<i8").tobytes())
        for visit in self.visits:
            digest.update(json.dumps(asdict(visit), sort_keys=True).encode())
        return digest.hexdigest()

    def load(self, number: int) -> Visit:
        """Visit `number` with its frame tokens, read from the cache."""
        visit = self.visits[number]
        return Visit(video=self.cache.get(visit.key), turns=visit.turns, caption=visit.caption)

    def _rows(self) -> np.ndarray:
        row_of_key = {key: row for row, key in enumerate(self.cache.keys)}
        return np.array([row_of_key[visit.key] for visit in self.visits])

    def _column(self, name: str) -> np.ndarray:
        return self.cache.index[name].to_numpy().astype(np.int64)[self._rows()]


def plan_visits(
    cache: Cache,
    annotations: Iterable[Annotation],
    *,
    stage: Literal[1, 2],
    turns_per_visit: int,
    media_prefix: str = "",
    max_left_out_share: float = 0.0,
) -> VisitSet:
    """Join annotations with a cache: which video is visited with which questions.

    Rows about one video are taken together. Stage 1 makes a visit of every caption, stage 2 of every
    `turns_per_visit` questions. Images go past LinVT, so stage 1, in which nothing else trains, leaves them out. Raises
    ValueError where more than `max_left_out_share` of the other media have to be left out, nothing is left, or a row
    and the cache disagree about what is an image. Rows about a section of a video are left out: the cache holds whole
    ones.
    """
    merged: dict[str, tuple[str, list[str], list[Turn]]] = {}
    with_sections: set[str] = set()
    for annotation in annotations:
        media_id = media_prefix + annotation.media_id
        kind, captions, turns = merged.setdefault(media_id, (annotation.kind, [], []))
        if kind != annotation.kind:
            raise ValueError(f"{media_id}: annotated both as {kind} and as {annotation.kind}")
        if annotation.section_s is not None:
            with_sections.add(media_id)
            continue
        captions += [annotation.caption] if annotation.caption is not None else []
        turns += annotation.turns
    if not merged:
        raise ValueError("the annotation files hold no rows")

    row_of_key = {key: row for row, key in enumerate(cache.keys)}
    key_of_id = AnyExtension(cache.video_ids)
    kinds = cache.index["kind"].to_pylist()
    visits: list[tuple[int, PlannedVisit]] = []
    left_out: list[LeftOut] = []
    for media_id, (kind, captions, turns) in merged.items():
        key = key_of_id.get(media_id)
        if key is None:
            left_out.append(LeftOut(media_id=media_id, reason="not in the cache"))
            continue
        row = row_of_key[key]
        if kinds[row] != kind:
            raise ValueError(f"{media_id}: annotated as {kind}, but the cache holds {kinds[row]} tokens of it")
        if stage == 1 and kind == "image":
            left_out.append(LeftOut(media_id=media_id, reason="an image, in stage 1"))
            continue
        if stage == 1:
            new = [_caption_visit(key, caption) for caption in captions]
        else:
            chunks = [tuple(turns[i : i + turns_per_visit]) for i in range(0, len(turns), turns_per_visit)]
            new = [PlannedVisit(key=key, turns=chunk) for chunk in chunks]
        if media_id in with_sections:
            left_out.append(LeftOut(media_id=media_id, reason="a section of a video"))
        elif not new:
            left_out.append(LeftOut(media_id=media_id, reason="no caption" if stage == 1 else "no question"))
        visits += [(row, visit) for visit in new]
    _check_left_out(left_out, len(merged), max_left_out_share, cache, media_prefix)
    visits.sort(key=lambda pair: pair[0])
    return VisitSet(cache, tuple(visit for _, visit in visits), tuple(left_out))


def _caption_visit(key: str, caption: str) -> PlannedVisit:
    turn = Turn(question=CAPTION_INSTRUCTION, answer=caption)
    return PlannedVisit(key=key, turns=(turn,), caption=caption)


def _check_left_out(left_out: list[LeftOut], num_media: int, max_share: float, cache: Cache, media_prefix: str) -> None:
    counts = Counter(item.reason for item in left_out)
    faults = [item for item in left_out if item.reason != "an image, in stage 1"]
    if len(faults) <= max_share * num_media and len(left_out) < num_media:
        return
    shown = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    examples = ", ".join(f"{item.media_id} ({item.reason})" for item in (faults or left_out)[:3])
    raise ValueError(
        f"{len(left_out)} of {num_media} annotated media cannot be trained on ({shown}), with --max-left-out-share "
        f"{max_share}: {examples}. The cache's ids look like {next(iter(cache.video_ids))!r}; --media-prefix (now "
        f"{media_prefix!r}) is put before the annotations' names"
    )


def require_one_token_count(cache: Cache) -> None:
    """Raises ValueError for a cache in which videos have frames of unlike token counts: a batch needs one."""
    columns = (cache.index[name].to_pylist() for name in ("kind", "tokens_per_frame"))
    counts = sorted({count for kind, count in zip(*columns) if kind == "video"})
    if len(counts) > 1:
        raise ValueError(
            f"{cache.storage.uri} holds frames of {len(counts)} different token counts ({counts[:5]} …), and training "
            "batches need one; extract with a backbone that gives every frame the same number of tokens"
        )
