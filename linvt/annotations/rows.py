"""The one row type that every annotation format is read into."""

from dataclasses import dataclass
from typing import Literal

MediaKind = Literal["video", "image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One question about a video or an image, and its answer."""

    question: str
    answer: str
    family: str | None = None
    """The question's family, by which evaluation groups its scores."""
    choices: tuple[str, ...] | None = None
    """The options of a multiple-choice question, the answer among them."""

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
    """The cache's video id: the media file's path relative to the extraction's input root."""
    kind: MediaKind
    caption: str | None = None
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if not self.media_id:
            raise ValueError("an empty media id")
        if self.kind not in ("video", "image"):
            raise ValueError(f"kind {self.kind!r}; valid kinds: 'video', 'image'")
        if self.caption is not None and not self.caption.strip():
            raise ValueError("an empty caption; leave the field out where there is none")
        if self.caption is None and not self.turns:
            raise ValueError("neither a caption nor a question")
