"""The one row type that every annotation format is read into, and what stands for a row that gives none."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MediaKind = Literal["video", "image"]

ANY_EXTENSION = ".*"
"""Ends the media id of a set that does not say which extension its files have; see `linvt.annotations.media`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One question about a video or an image, and its answer."""

    question: str
    answer: str
    family: str | None = None
    """The question's family, by which evaluation groups its scores."""
    choices: tuple[str, ...] | None = None
    """The options of a multiple-choice question, the answer among them."""
    follows: bool = False
    """Asked once the turn before it was answered, in one conversation with it; else a question by itself."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("an empty question")
        if not self.answer.strip():
            raise ValueError(f"an empty answer to {self.question!r}")
        if self.choices is not None and self.answer not in self.choices:
            raise ValueError(f"the answer {self.answer!r} is not among its choices {list(self.choices)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """What one row of an annotation file says about one video or image."""

    media_id: str
    """The cache's video id: the media file's path relative to the extraction's input root. It ends in `.*` where the
    set does not say the extension."""
    kind: MediaKind
    caption: str | None = None
    turns: tuple[Turn, ...] = ()
    section_s: tuple[float, float] | None = None
    """[start, end) in seconds, where the row speaks of a part of the video alone."""

    def __post_init__(self) -> None:
        if not self.media_id:
            raise ValueError("an empty media id")
        if self.kind not in ("video", "image"):
            raise ValueError(f"kind {self.kind!r}; valid kinds: 'video', 'image'")
        if self.caption is not None and not self.caption.strip():
            raise ValueError("an empty caption; leave the field out where there is none")
        if self.caption is None and not self.turns:
            raise ValueError("neither a caption nor a question")
        if self.section_s is not None and not 0 <= self.section_s[0] < self.section_s[1] < math.inf:
            raise ValueError(f"a section must start at 0 or later and end after that, got {list(self.section_s)}")
        if self.turns and self.turns[0].follows:
            raise ValueError(f"the first question, {self.turns[0].question!r}, has no turn before it to follow")


def conversations(turns: Iterable[Turn]) -> list[tuple[Turn, ...]]:
    """Turns grouped: each question by itself is a conversation of one turn."""
    grouped: list[tuple[Turn, ...]] = []
    for turn in turns:
        if turn.follows:
            grouped[-1] += (turn,)
        else:
            grouped.append((turn,))
    return grouped


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that gives no Annotation."""

    file: str
    line: int
    """Where the row starts, from 1."""
    row: int
    """The number of the row in its file, from 1: a JSON array may be one line."""
    reason: str
    is_broken: bool
    """False for a row that the set's own rules leave out, such as the image rows of VideoChat2-IT."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason} (row {self.row})"


class LeftOut(Exception):
    """Raised for a row that the set's own rules leave out; says why, in the same words for every such row."""
