"""What can be asked of `python -m linvt.annotations`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectConfig:
    """Say what annotation files hold."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Annotation files as they were published. Those that another one is read with (answers beside questions, maps of
    names) are found by themselves."""
    format: str = "auto"
    """Format of all files; auto: told for each by its first rows."""
    media_root: Path | None = None
    """The local folder that media paths start from; where it is given, media that are not there are counted."""
    media_prefix: str = ""
    """Put before every media name, as in training."""
    show: int = 20
    """How many broken rows, missing media and duplicates to show of each file; all are counted."""

    def __post_init__(self) -> None:
        _require_files(self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """Write annotation files as one file in LinVT's own format, which extraction takes as a list of media, too."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Annotation files as they were published."""
    out: Path
    """The .jsonl to write."""
    format: str = "auto"
    """Format of all files; auto: told for each by its first rows."""
    media_root: Path | None = None
    """The local folder that media paths start from. Where a set does not say the extension of its files, it is looked
    up here; a medium that is not here is a problem."""
    media_prefix: str = ""
    """Put before every media name."""
    on_problem: Literal["fail", "skip"] = "fail"
    """What to do with a broken row, or one whose medium is missing: end without a file, or count it and go on."""
    drop_duplicates: bool = False
    """Leave out samples that were there before, in the same or an earlier file. Holds some 100 bytes a sample."""
    on_existing: Literal["fail", "overwrite"] = "fail"
    """What to do where OUT exists."""

    def __post_init__(self) -> None:
        _require_files(self.files)
        if self.out.suffix != ".jsonl":
            raise ValueError(f"--out {self.out}: expected a name that ends in .jsonl, by which extraction knows it")


def _require_files(files: tuple[Path, ...]) -> None:
    if not files:
        raise ValueError("name at least one annotation file")
