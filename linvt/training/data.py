"""What a run trains on: annotations joined with the cache, as visits."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from linvt.annotations import Annotation, AnyExtension, Turn, conversations, read_annotations
from linvt.annotations.reading import with_formats
from linvt.shards import Cache
from linvt.training.batches import CAPTION_INSTRUCTION, Visit
from linvt.training.order import visits_per_epoch

LengthGrouping = Literal["frames", "frames-text", "none"]
# A visit's text counts below its frames: at most so many characters of it.
_MOST_CHARACTERS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One annotation file of a mixture."""

    name: str
    annotations: Iterable[Annotation]
    weight: float = 1.0
    """How often an epoch visits each of its samples, see `linvt.training.order.epoch_members`."""
    media_prefix: str = ""
    """Put before its media names to make them the cache's video ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedVisit:
    """A sample of training before its frame tokens are read."""

    key: str
    turns: tuple[Turn, ...]
    caption: str | None = None
    source: int = 0
    """Number of the annotation file that it is from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """An annotated video or image that the run cannot train on, and why."""

    media_id: str
    reason: Literal["not in the cache", "no caption", "no question", "an image, in stage 1", "a section of a video"]
    file: str


@dataclass(frozen=True, eq=False)
class VisitSet:
    """The samples of a run, numbered in the order of the cache, whatever the order of a file's rows."""

    cache: Cache
    visits: tuple[PlannedVisit, ...]
    source_names: tuple[str, ...]
    weights: tuple[float, ...]
    """Of each source."""
    left_out: tuple[LeftOut, ...] = field(default=())
    length_grouping: LengthGrouping = "frames"

    def __len__(self) -> int:
        return len(self.visits)

    @property
    def shards(self) -> np.ndarray:
        """int64 [S]: the shard that holds each visit's tokens."""
        return self._column("shard")

    @property
    def sources(self) -> np.ndarray:
        """int64 [S]: the annotation file that each visit is from."""
        return np.array([visit.source for visit in self.visits])

    @property
    def samples_per_epoch(self) -> int:
        """Samples that an epoch visits, by the sources' weights."""
        counts = np.bincount(self.sources, minlength=len(self.weights))
        return sum(map(visits_per_epoch, counts.tolist(), self.weights))

    @property
    def is_image(self) -> np.ndarray:
        """bool [S]: images go past LinVT."""
        kinds = self.cache.index["kind"].to_pylist()
        return np.array([kinds[row] == "image" for row in self._rows])

    @property
    def lengths(self) -> np.ndarray:
        """int64 [S], by which batches group visits: frames, and with "frames-text" their text among equals.

        Images count as middling videos, so batches mix both.
        """
        if self.length_grouping == "none":
            return np.zeros(len(self), np.int64)
        frames, is_image = self._column("num_frames"), self.is_image
        middling = int(np.median(frames[~is_image])) if not is_image.all() else 1
        frames = np.where(is_image, middling, frames)
        if self.length_grouping == "frames":
            return frames
        # A step pads every sequence to its longest one.
        longest = [
            max(sum(len(t.question) + len(t.answer) for t in group) for group in conversations(v.turns))
            for v in self.visits
        ]
        return frames * _MOST_CHARACTERS + np.minimum(longest, _MOST_CHARACTERS - 1)

    @property
    def fingerprint(self) -> str:
        """Equal where the visits are, and all that their order depends on: a resumed run must find what it left."""
        digest = hashlib.sha256(self.cache.feature_id.encode())
        digest.update(np.stack([self.shards, self.lengths, self.is_image]).astype("<i8").tobytes())
        digest.update(json.dumps(self.weights).encode())
        for visit in self.visits:
            digest.update(json.dumps(asdict(visit), sort_keys=True).encode())
        return digest.hexdigest()

    def load(self, number: int) -> Visit:
        """Visit `number` with its frame tokens, read from the cache."""
        visit = self.visits[number]
        return Visit(video=self.cache.get(visit.key), turns=visit.turns, caption=visit.caption)

    def describe(self, number: int) -> dict[str, Any]:
        """Where visit `number` comes from: the video, the annotation file, and what is asked."""
        visit = self.visits[number]
        return {
            "sample": number,
            "video_id": self.cache.index["video_id"][int(self._rows[number])].as_py(),
            "annotations": self.source_names[visit.source],
            "questions": [turn.question for turn in visit.turns],
        }

    def mixture(self) -> list[dict[str, Any]]:
        """What each annotation file brings: samples, questions, and samples of an epoch."""
        counts = np.bincount(self.sources, minlength=len(self.weights))
        questions = Counter[int]()
        for visit in self.visits:
            questions[visit.source] += len(visit.turns)
        left_out = Counter(item.file for item in self.left_out)
        return [
            {
                "annotations": name,
                "samples": count,
                "questions": questions[source],
                "weight": weight,
                "samples_per_epoch": visits_per_epoch(count, weight),
                "left_out": left_out[name],
            }
            for source, (name, weight, count) in enumerate(zip(self.source_names, self.weights, counts.tolist()))
        ]

    @cached_property
    def _rows(self) -> np.ndarray:
        row_of_key = {key: row for row, key in enumerate(self.cache.keys)}
        return np.array([row_of_key[visit.key] for visit in self.visits])

    def _column(self, name: str) -> np.ndarray:
        return self.cache.index[name].to_numpy().astype(np.int64)[self._rows]


def open_sources(
    files: Sequence[str], *, formats: Sequence[str], weights: Sequence[float], media_prefixes: Sequence[str]
) -> list[Source]:
    """The sources of annotation files; formats, weights and prefixes are one for all files or one for each.

    A file that another one is read with (answers beside their questions) is no source of its own. Raises ValueError for
    files that are not there or named twice, and as `read_annotations` does.
    """
    per_file = {
        "--format": formats,
        "--mixture-weights": weights or (1.0,),
        "--media-prefix": media_prefixes,
    }
    for flag, values in per_file.items():
        if len(values) not in (1, len(files)):
            raise ValueError(
                f"{flag} has {len(values)} values for {len(files)} annotation files; give one, or one each"
            )
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise ValueError(f"annotation files named twice: {twice}; to visit a file more often, give it a weight")
    formats, weights, media_prefixes = (
        [values[0]] * len(files) if len(values) == 1 else list(values) for values in per_file.values()
    )
    number_of = {Path(file): number for number, file in enumerate(files)}
    return [
        Source(
            name=str(path),
            annotations=read_annotations([path], one),
            weight=weights[number_of[path]],
            media_prefix=media_prefixes[number_of[path]],
        )
        for path, one in with_formats(files, formats)
    ]


def plan_visits(
    cache: Cache,
    sources: Sequence[Source],
    *,
    stage: Literal[1, 2],
    turns_per_visit: int,
    max_left_out_share: float = 0.0,
    length_grouping: LengthGrouping = "frames",
) -> VisitSet:
    """Join annotations with a cache: which video is visited with which questions.

    A source's rows about one video are taken together. Stage 1 makes a visit of every caption, stage 2 of every
    `turns_per_visit` questions; the turns of a conversation stay together, however many they are. Images go past LinVT,
    so stage 1, in which nothing else trains, leaves them out. Rows about a section of a video are left out: the cache
    holds whole ones. Raises ValueError where more than `max_left_out_share` of a source's other media have to be left
    out, nothing is left, or rows and the cache disagree about what is an image.
    """
    row_of_key = {key: row for row, key in enumerate(cache.keys)}
    key_of_id = AnyExtension(cache.video_ids)
    kinds = cache.index["kind"].to_pylist()
    kind_of_id: dict[str, str] = {}
    visits: list[tuple[int, PlannedVisit]] = []
    left_out: list[LeftOut] = []
    num_media = 0
    for number, source in enumerate(sources):
        merged = _merged(source, kind_of_id)
        of_source: list[LeftOut] = []
        for media_id, (captions, turns, has_section) in merged.items():
            kind, key = kind_of_id[media_id], key_of_id.get(media_id)
            if key is None:
                of_source.append(LeftOut(media_id=media_id, reason="not in the cache", file=source.name))
                continue
            row = row_of_key[key]
            if kinds[row] != kind:
                raise ValueError(f"{media_id}: annotated as {kind}, but the cache holds {kinds[row]} tokens of it")
            if stage == 1 and kind == "image":
                of_source.append(LeftOut(media_id=media_id, reason="an image, in stage 1", file=source.name))
                continue
            if stage == 1:
                new = [_caption_visit(key, caption, number) for caption in captions]
            else:
                new = [
                    PlannedVisit(key=key, turns=some, source=number)
                    for some in _in_visits(turns, turns_per_visit=turns_per_visit)
                ]
            if has_section:
                of_source.append(LeftOut(media_id=media_id, reason="a section of a video", file=source.name))
            elif not new:
                reason = "no caption" if stage == 1 else "no question"
                of_source.append(LeftOut(media_id=media_id, reason=reason, file=source.name))
            visits += [(row, visit) for visit in new]
        faults = [item for item in of_source if item.reason != "an image, in stage 1"]
        if len(faults) > max_left_out_share * len(merged):
            raise ValueError(_left_out_message(of_source, len(merged), max_left_out_share, cache, source))
        left_out += of_source
        num_media += len(merged)
    if not num_media:
        raise ValueError("the annotation files hold no rows")
    if not visits:
        raise ValueError(_left_out_message(left_out, num_media, max_left_out_share, cache, sources[0]))
    visits.sort(key=lambda pair: (pair[0], pair[1].source))
    return VisitSet(
        cache,
        tuple(visit for _, visit in visits),
        source_names=tuple(source.name for source in sources),
        weights=tuple(source.weight for source in sources),
        left_out=tuple(left_out),
        length_grouping=length_grouping,
    )


def _merged(source: Source, kind_of_id: dict[str, str]) -> dict[str, tuple[list[str], list[Turn], bool]]:
    """By media id: captions, turns, and whether there are rows about a section, which bring neither."""
    merged: dict[str, tuple[list[str], list[Turn], bool]] = {}
    for annotation in source.annotations:
        media_id = source.media_prefix + annotation.media_id
        kind = kind_of_id.setdefault(media_id, annotation.kind)
        if kind != annotation.kind:
            raise ValueError(f"{media_id}: annotated both as {kind} and as {annotation.kind}")
        captions, turns, has_section = merged.get(media_id, ([], [], False))
        if annotation.section_s is not None:
            has_section = True
        else:
            captions += [annotation.caption] if annotation.caption is not None else []
            turns += annotation.turns
        merged[media_id] = captions, turns, has_section
    return merged


def _in_visits(turns: Sequence[Turn], *, turns_per_visit: int) -> list[tuple[Turn, ...]]:
    """Turns in their order, so many to a visit; a conversation is not divided, and a longer one is a visit alone."""
    found: list[tuple[Turn, ...]] = []
    for conversation in conversations(turns):
        if found and len(found[-1]) + len(conversation) <= turns_per_visit:
            found[-1] += conversation
        else:
            found.append(conversation)
    return found


def _caption_visit(key: str, caption: str, source: int) -> PlannedVisit:
    turn = Turn(question=CAPTION_INSTRUCTION, answer=caption)
    return PlannedVisit(key=key, turns=(turn,), caption=caption, source=source)


def _left_out_message(left_out: list[LeftOut], num_media: int, max_share: float, cache: Cache, source: Source) -> str:
    counts = Counter(item.reason for item in left_out)
    faults = [item for item in left_out if item.reason != "an image, in stage 1"]
    shown = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    examples = ", ".join(f"{item.media_id} ({item.reason})" for item in (faults or left_out)[:3])
    return (
        f"{len(left_out)} of {num_media} annotated media cannot be trained on ({shown}), with --max-left-out-share "
        f"{max_share}, in {source.name}: {examples}. The cache's ids look like {next(iter(cache.video_ids))!r}; "
        f"--media-prefix (now {source.media_prefix!r}) is put before the annotations' names"
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
