"""What a benchmark is made of: questions about media, verdicts on answers, and the entry that ties them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from linvt.evaluation.estimates import Estimate
    from linvt.evaluation.rules.judging import JudgeProtocol

MISSING = "missing"
UNLABELLED = "no answer published"


@dataclass(frozen=True, slots=True)
class Medium:
    """A video or image that a question is about."""

    kind: Literal["video", "image"]
    path: str
    """Below the folder with the benchmark's media."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question of a benchmark."""

    item_id: str
    media: tuple[Medium, ...]
    """In the order in which the prompt shows them, before its text."""
    prompt: str
    """What the model is told."""
    question: str
    """What a judge is told that the question is."""
    answers: tuple[str, ...]
    """The right ones; empty where the benchmark keeps them to itself."""
    options: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    """What it belongs to: {"task": "count", "duration": "long"}. Scores are broken down by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a rule or a judge says of an answer."""

    score: float
    """On the benchmark's scale; 0 or 1 where answers are right or wrong."""
    correct: bool | None
    """None where the benchmark does not call answers right or wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One answer with its verdict: a line of results.jsonl."""

    item_id: str
    media: tuple[str, ...]
    groups: dict[str, str]
    question: str
    answers: tuple[str, ...]
    prediction: str | None
    """None where a medium was missing or could not be decoded."""
    score: float
    correct: bool | None
    by: str
    """What made the verdict: "rule", "judge", "exact match", "missing", "no answer published"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """What a loader may need to know beside the files."""

    media: Path | None
    """The folder with the media; loaders that need it say so."""
    num_frames: int | None = None
    """How many frames of each video will be seen, for benchmarks that show the subtitles of those frames."""


Rule = Callable[[Item, str], Verdict]
Metrics = Callable[[Sequence[Scored]], "dict[str, Estimate]"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A benchmark's entry: where its questions come from and how answers are scored."""

    name: str
    """What `--benchmark` calls it."""
    title: str
    kind: Literal["video", "image"]
    table: Literal[7, 8, 9]
    """The table of the paper that reports it."""
    columns: dict[str, str]
    """Columns of that table: heading to metric."""
    questions: int
    """How many its published files have."""
    source: str
    """Where its files are published."""
    data: str
    """What `--data` holds: the published files and folders."""
    media: str
    """What `--media-root` holds."""
    load: Callable[[Path, LoadOptions], Iterable[Item]]
    """The questions, in the files' order. Raises ValueError for files that are not as published."""
    rule: Rule
    """The verdict without a judge."""
    rule_name: str
    """What the verdict without a judge is called where it is reported."""
    metrics: Metrics
    """The benchmark's own numbers from all scored answers, the main one first."""
    judged_metrics: Metrics | None = None
    """The same from a judge's verdicts."""
    unit: str = "%"
    judged_unit: str = "%"
    """What the main number counts in, without and with a judge."""
    judge: JudgeProtocol | None = None
    breakdowns: tuple[str, ...] = ()
    """Names of groups by which the main number is given too."""
    max_new_tokens: int = 16
    """Longest answer, in tokens, as lmms-eval has it."""
    submission: Callable[[Sequence[tuple[Item, str | None]]], Any] | None = None
    """What the benchmark's own server takes, as JSON, from all answers; where answers are not published."""
    lmms_tasks: tuple[str, ...] = ()
    """Tasks of lmms-eval 0.7.3, or of ours for it (`lmms_ours`)."""
    lmms_metrics: tuple[str, ...] = ()
    """The number of those tasks that is the main one here; the sum of several."""
    lmms_scale: float = 100.0
    """What makes that number ours: 100 where lmms-eval gives a share, 1 where it gives percent or points."""
    lmms_judge: str | None = None
    """The judge that lmms-eval's tasks ask for: a model's name, "*" for any that is named, None without a judge."""
    lmms_ours: bool = False
    """Whether lmms-eval lacks the benchmark, and the task is written by `python -m linvt.evaluation.lmms export`."""
    checked: str
    """How the scoring was compared with the benchmark's own."""
    read_here: str = "made-up rows"
    """Which published questions went through the loader and the scorer when this was written."""


def published(folder: Path, *names: str) -> Path:
    """The first of `names` that is below `folder`; `folder` itself if it is a file. Raises ValueError without any."""
    if folder.is_file():
        return folder
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"--data {folder}: none of the published files is there; expected {' or '.join(names)}")
