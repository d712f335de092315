"""Video-MME, without and with subtitles."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from linvt.evaluation.benchmarks.files import parquet_files, read_parquet
from linvt.evaluation.benchmarks.lettered import by_letter, take
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored
from linvt.evaluation.estimates import Estimate, accuracy, by
from linvt.evaluation.rules.choices import video_mme_letter

_ASK = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)
_DURATIONS = ("short", "medium", "long")
_TAG = re.compile(r"<[^>]+>")


def _load(folder: Path, options: LoadOptions, *, with_subtitles: bool) -> Iterator[Item]:
    if with_subtitles and (options.num_frames is None or options.media is None):
        raise ValueError(
            "Video-MME shows the subtitles of the frames that are seen: give --num-frames, and --media-root with "
            "subtitle/"
        )
    for where, row in read_parquet(parquet_files(folder, "videomme/test-*.parquet", "test-*.parquet")):
        names = (
            "question_id",
            "videoID",
            "question",
            "options",
            "answer",
            "duration",
            "domain",
            "sub_category",
            "task_type",
        )
        question_id, video, question, choices, answer, *groups = take(row, where, *names)
        shown = "\n".join([_ASK, question, *choices, "The best answer is:"])
        if with_subtitles:
            assert options.media is not None
            assert options.num_frames is not None
            seconds = duration_s(options.media / "data" / f"{video}.mp4")
            subtitles = _subtitles(options.media / "subtitle" / f"{video}.srt", options.num_frames, seconds)
            if subtitles:
                shown = f"This video's subtitles are listed below:\n{subtitles}\n{shown}"
        yield Item(
            item_id=question_id,
            media=(Medium("video", f"data/{video}.mp4"),),
            prompt=shown,
            question=question,
            answers=(answer,),
            options=tuple(choices),
            groups=dict(zip(("duration", "domain", "sub_category", "task_type"), groups, strict=True)),
        )


def duration_s(path: Path) -> float | None:
    """How long a video is, by its header; None if it does not say, or is no video."""
    import av

    try:
        with av.open(str(path)) as container:
            return container.duration / av.time_base if container.duration else None
    except av.FFmpegError:
        return None


def _subtitles(path: Path, num_frames: int, duration_s: float | None) -> str:
    """The subtitles shown at `num_frames` evenly spread times, once each and in order; "" for a video without any.

    Where the duration is not known, the end of the last subtitle stands for it.
    """
    if not path.is_file():
        return ""
    cues = list(read_srt(path.read_text(encoding="utf-8-sig", errors="replace")))
    if not cues:
        return ""
    end_s = duration_s or max(end for _, end, _ in cues)
    times_s = [(i + 0.5) / num_frames * end_s for i in range(num_frames)]
    seen = [text for start, end, text in cues if any(start <= time < end for time in times_s)]
    return "\n".join(dict.fromkeys(seen))


def read_srt(text: str) -> Iterator[tuple[float, float, str]]:
    """(start, end, text) of the cues of a SubRip file, in seconds, without markup."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        timed = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if timed is None:
            continue
        start, end = (_seconds(time) for time in lines[timed].split("-->"))
        spoken = _TAG.sub("", " ".join(lines[timed + 1 :])).strip()
        if spoken:
            yield start, end, spoken


def _seconds(time: str) -> float:
    hours, minutes, seconds = time.strip().split(" ")[0].replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    parts = by(rows, "duration")
    return {"accuracy": accuracy(rows)} | {name: accuracy(parts[name]) for name in _DURATIONS if name in parts}


def _entry(name: str, title: str, *, with_subtitles: bool, lmms_tasks: tuple[str, ...]) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        kind="video",
        table=8,
        columns={title: "accuracy", f"{title}, Long": "long"},
        questions=2700,
        source="https://huggingface.co/datasets/lmms-lab/Video-MME",
        data="videomme/test-00000-of-00001.parquet",
        media="data/{videoID}.mp4" + (", subtitle/{videoID}.srt" if with_subtitles else ""),
        load=partial(_load, with_subtitles=with_subtitles),
        rule=by_letter(video_mme_letter),
        rule_name="first capital A to D, as in eval_your_results.py",
        metrics=_metrics,
        breakdowns=("duration", "domain", "task_type"),
        lmms_tasks=lmms_tasks,
        lmms_metrics=("videomme_perception_score",),
        lmms_scale=1,
        checked="100,000 random answers against the published eval_your_results.py: equal",
    )


VIDEO_MME = _entry("video-mme", "Video-MME w/o subs", with_subtitles=False, lmms_tasks=("videomme",))
VIDEO_MME_SUBTITLES = _entry(
    "video-mme-subtitles", "Video-MME w/ subs", with_subtitles=True, lmms_tasks=("videomme_w_subtitle",)
)
