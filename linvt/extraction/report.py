"""`OUT/report.html`: what an extraction did, for the person who ran it. One file that asks for nothing else.

Names and messages in it come from media files, so they are hostile until shown otherwise: each is escaped, cut to a
length, and freed of characters that would hide or reorder what surrounds it.
"""

import base64
import html
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from linvt.extraction.rows import STAGE_SECONDS
from linvt.extraction.thumbnails import INPUTS_PER_SHARD, NUM_SHARDS
from linvt.shards.layout import REPORT, VIDEOS
from linvt.shards.storage import Storage

MAX_QUARANTINED = 1000
MAX_GALLERY = 48
MAX_EXAMPLES = 3
MAX_CHARACTERS = 400
"""Of one name or message."""

_FACTS = ("status", "kind", "duration_s", "num_frames", "size_bytes", "tokens_per_frame", *STAGE_SECONDS.values())
_QUARANTINE = ("video_id", "stage", "error_class", "message")
_GALLERY = ("video_id", "kind", "duration_s", "width", "height", "codec", "shots_s", "kept_timestamps_s", "thumbnails")
# What grows with a video's length (boundary probabilities, above all) is left where it is.
_COLUMNS = list(dict.fromkeys(_FACTS + _QUARANTINE + _GALLERY))
_ROWS_AT_ONCE = 1024

# Steps across a timeline: finer ones would not be seen, and a video may have any number of shots.
_TIMELINE_STEPS = 2000


def write_report(storage: Storage, *, num_shards: int, shard_bytes: int) -> None:
    """Writes OUT/report.html from OUT/videos.parquet and what is known of the shards: their number and size.

    The rows are read in one pass, a row group at a time, so memory does not grow with their number. Equal rows give
    equal bytes. Raises FileNotFoundError where there is no videos.parquet.
    """
    totals = _Totals()
    with storage.open(VIDEOS) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            # Asked for all at once, the groups would be fetched ahead and held until the last is read.
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=_COLUMNS):
                totals.add(batch)
    with storage.open_atomic(REPORT) as file:
        for part in _page(totals, num_shards, shard_bytes):
            file.write(part.encode())


@dataclass(slots=True)
class _StageTime:
    seconds: float = 0.0
    """Over all inputs that passed the stage."""
    seconds_of_videos: float = 0.0
    duration_of_videos_s: float = 0.0


@dataclass(slots=True)
class _Failures:
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Totals:
    """What the page tells; counts of media, frames, shots and tokens are those of committed inputs."""

    inputs: int = 0
    videos: int = 0
    images: int = 0
    duration_s: float = 0.0
    frames_decoded: int = 0
    frames_kept: int = 0
    shots_of_videos: int = 0
    most_shots: int = 0
    tokens: int = 0
    media_bytes: int = 0
    stages: dict[str, _StageTime] = field(default_factory=lambda: {name: _StageTime() for name in STAGE_SECONDS})
    failures: dict[tuple[str, str], _Failures] = field(default_factory=lambda: defaultdict(_Failures))
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    gallery: list[dict[str, Any]] = field(default_factory=list)

    @property
    def committed(self) -> int:
        return self.videos + self.images

    def add(self, batch: pa.RecordBatch) -> None:
        self.inputs += batch.num_rows
        self._add_times(batch)
        is_committed = batch["status"].to_numpy(False) == "committed"
        self._add_committed(batch.filter(pa.array(is_committed)))
        self._add_quarantined(batch.filter(pa.array(~is_committed)))

    def _add_times(self, batch: pa.RecordBatch) -> None:
        is_video, durations_s = _is_video(batch), _numbers(batch, "duration_s")
        for stage, column in STAGE_SECONDS.items():
            seconds, time = _numbers(batch, column), self.stages[stage]
            timed_videos = is_video & ~np.isnan(seconds)
            time.seconds += float(np.nansum(seconds))
            time.seconds_of_videos += float(seconds[timed_videos].sum())
            time.duration_of_videos_s += float(np.nansum(durations_s[timed_videos]))

    def _add_committed(self, batch: pa.RecordBatch) -> None:
        is_video = _is_video(batch)
        kept, shots = (batch[name].value_lengths().fill_null(0).to_numpy() for name in ("kept_timestamps_s", "shots_s"))
        self.videos += int(is_video.sum())
        self.images += int((~is_video).sum())
        self.duration_s += float(np.nansum(_numbers(batch, "duration_s")))
        self.frames_decoded += int(np.nansum(_numbers(batch, "num_frames")))
        self.frames_kept += int(kept.sum())
        self.shots_of_videos += int(shots[is_video].sum())
        self.most_shots = max(self.most_shots, int(shots[is_video].max(initial=0)))
        self.tokens += int(np.nansum(kept * _numbers(batch, "tokens_per_frame")))
        self.media_bytes += int(np.nansum(_numbers(batch, "size_bytes")))
        wanted = batch.filter(batch["thumbnails"].is_valid()).slice(0, MAX_GALLERY - len(self.gallery))
        self.gallery += wanted.select(_GALLERY).to_pylist()

    def _add_quarantined(self, batch: pa.RecordBatch) -> None:
        for row in batch.select(_QUARANTINE).to_pylist():
            row = {name: _cut(text) for name, text in row.items()}
            failures = self.failures[row["stage"], row["error_class"]]
            failures.count += 1
            if len(failures.examples) < MAX_EXAMPLES:
                failures.examples.append(row["video_id"])
            if len(self.quarantined) < MAX_QUARANTINED:
                self.quarantined.append(row)


def _is_video(batch: pa.RecordBatch) -> np.ndarray:
    return batch["kind"].to_numpy(False) == "video"


def _numbers(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """float64, NaN where there is none."""
    return batch[column].to_numpy(False).astype(np.float64)


def _cut(text: str | None) -> str:
    """Kept short from here on: a thousand messages of any length would not fit in memory, or on a page."""
    text = text or ""
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]}… ({len(text) - MAX_CHARACTERS:,} more characters)"


def _text(text: str) -> str:
    """Foreign text as HTML. What does not print is written as its escape: line ends and marks that turn the order."""
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
    # A name in a right-to-left script stays in its place, and its extension at its end.
    return f'<bdi dir="ltr">{html.escape(shown)}</bdi>'


def _page(totals: _Totals, num_shards: int, shard_bytes: int) -> Iterator[str]:
    quarantined = totals.inputs - totals.committed
    yield _HEAD
    yield (
        f"<header><h1>Extraction report</h1><p>{_count(totals.committed, 'input')} committed, {quarantined:,} "
        'quarantined.</p><nav><a href="#summary">Summary</a> <a href="#times">Times</a> '
        '<a href="#quarantine">Quarantine</a> <a href="#gallery">Gallery</a></nav></header>\n<main>\n'
    )
    yield from _summary(totals, num_shards, shard_bytes)
    yield from _times(totals.stages)
    yield from _quarantine_by_class(totals)
    yield from _gallery(totals.gallery)
    yield from _quarantine_by_input(totals.quarantined, quarantined)
    yield "</main>\n</body>\n</html>\n"


def _summary(totals: _Totals, num_shards: int, shard_bytes: int) -> Iterator[str]:
    quarantined = totals.inputs - totals.committed
    facts = [
        ("inputs", f"{totals.inputs:,}", ""),
        ("committed", f"{totals.committed:,}", f"{_count(totals.videos, 'video')}, {_count(totals.images, 'image')}"),
        ("quarantined", f"{quarantined:,}", _share(quarantined, totals.inputs, "of the inputs")),
        ("video-hours", _number(totals.duration_s / 3600), _clock(totals.duration_s)),
        ("frames decoded", f"{totals.frames_decoded:,}", ""),
        ("frames kept", f"{totals.frames_kept:,}", _share(totals.frames_kept, totals.frames_decoded, "of the decoded")),
        ("shots per video", _ratio(totals.shots_of_videos, totals.videos), f"at most {totals.most_shots:,}"),
        ("tokens", f"{totals.tokens:,}", f"{_ratio(totals.tokens, totals.committed)} per input"),
        ("media read", _size(totals.media_bytes), ""),
        ("shards", f"{num_shards:,}", _size(shard_bytes)),
    ]
    yield '<section id="summary"><h2>Summary</h2>\n<dl class="facts">\n'
    for name, value, note in facts:
        yield f"<div><dt>{name}</dt><dd>{value}</dd><dd><small>{note}</small></dd></div>\n"
    yield "</dl>\n<p>Hours, frames, shots, tokens and media are those of the committed inputs.</p></section>\n"


def _times(stages: dict[str, _StageTime]) -> Iterator[str]:
    whole = sum(time.seconds for time in stages.values())
    yield '<section id="times"><h2>Where the time went</h2>\n'
    yield from _table_start("stage", "worker-seconds", "share", "video-hours per worker-hour", kind="times")
    for stage, time in stages.items():
        percent = 100 * time.seconds / whole if whole else 0.0
        yield (
            f'<tr><th scope="row">{stage}</th><td class="number">{_number(time.seconds)}</td>'
            f'<td class="number"><span class="bar" style="width:{percent / 25:.2f}rem"></span> {percent:.1f}%</td>'
            f'<td class="number">{_ratio(time.duration_of_videos_s, time.seconds_of_videos)}</td></tr>\n'
        )
    yield (
        "</tbody></table></div>\n<p>Seconds are summed over all workers. The last column is for videos alone: images "
        "last no time. Inputs that could not be decoded are in none of these.</p></section>\n"
    )


def _quarantine_by_class(totals: _Totals) -> Iterator[str]:
    yield '<section id="quarantine"><h2>Quarantine</h2>\n'
    if not totals.failures:
        yield "<p>Nothing was quarantined.</p></section>\n"
        return
    yield from _table_start("inputs", "stage", "error class", "for example", kind="failures")
    # The most frequent first; among equals the order of the rows.
    for (stage, error_class), failures in sorted(totals.failures.items(), key=lambda item: -item[1].count):
        examples = "".join(f"<li>{_text(example)}</li>" for example in failures.examples)
        yield (
            f'<tr><td class="number">{failures.count:,}</td><td class="word">{_text(stage)}</td>'
            f'<td class="word">{_text(error_class)}</td><td><ul>{examples}</ul></td></tr>\n'
        )
    yield '</tbody></table></div>\n<p><a href="#quarantined">Each input and its message</a></p></section>\n'


def _quarantine_by_input(rows: list[dict[str, Any]], count: int) -> Iterator[str]:
    if not rows:
        return
    yield '<section id="quarantined"><h2>Quarantined inputs</h2>\n'
    if count > len(rows):
        yield (
            f"<p>The first {len(rows):,} of {count:,}; {count - len(rows):,} are left out here, "
            f"<code>{VIDEOS}</code> has them all.</p>\n"
        )
    yield from _table_start("id", "stage", "error class", "message", kind="failures")
    for row in rows:
        yield (
            f'<tr><td>{_text(row["video_id"])}</td><td class="word">{_text(row["stage"])}</td>'
            f'<td class="word">{_text(row["error_class"])}</td><td>{_text(row["message"])}</td></tr>\n'
        )
    yield "</tbody></table></div></section>\n"


def _table_start(*columns: str, kind: str) -> Iterator[str]:
    header = "".join(f'<th scope="col">{column}</th>' for column in columns)
    # Wide tables scroll by themselves: on a phone the page stays as wide as the screen.
    yield f'<div class="scroll"><table class="{kind}"><thead><tr>{header}</tr></thead><tbody>\n'


def _gallery(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield '<section id="gallery"><h2>Gallery</h2>\n'
    if not rows:
        yield "<p>No committed input has thumbnails.</p></section>\n"
        return
    yield (
        f"<p>{_count(len(rows), 'input')}: of each of the first {NUM_SHARDS} shards the first {INPUTS_PER_SHARD}, "
        "without quarantined ones. Bars are shots, ticks are kept frames, pictures are some of those in their "
        'order.</p>\n<div class="gallery">\n'
    )
    for row in rows:
        yield from _card(row)
    yield "</div></section>\n"


def _card(row: dict[str, Any]) -> Iterator[str]:
    shots, kept = _count(len(row["shots_s"]), "shot"), _count(len(row["kept_timestamps_s"]), "kept frame")
    is_video = row["kind"] == "video"
    facts = [
        _clock(row["duration_s"]) if is_video else "image",
        f"{row['width']}×{row['height']}",
        _text(_cut(row["codec"])),
        *([shots, kept] if is_video else []),
    ]
    yield f"<article><h3>{_text(_cut(row['video_id']))}</h3><p>{' · '.join(facts)}</p>\n"
    if is_video:
        yield _timeline(row["shots_s"], row["kept_timestamps_s"], row["duration_s"], f"{shots}, {kept}")
    strip = base64.b64encode(row["thumbnails"]).decode()
    yield f'<img alt="Kept frames, from the first to the last" src="data:image/jpeg;base64,{strip}"></article>\n'


def _timeline(shots_s: list[list[float]], kept_s: list[float], duration_s: float, label: str) -> str:
    """Shots as segments in two colours by turns, with nothing where a transition is in no shot; ticks below."""

    def steps(times_s: Iterable[float]) -> list[int]:
        scaled = np.array(list(times_s), np.float64) * (_TIMELINE_STEPS / duration_s if duration_s > 0 else 0.0)
        return np.rint(scaled).clip(0, _TIMELINE_STEPS).astype(int).tolist()

    edges = zip(steps(start_s for start_s, _ in shots_s), steps(end_s for _, end_s in shots_s))
    segments = [f"M{start} 0H{end}V18H{start}z" for start, end in edges if start < end]
    ticks = "".join(f"M{step} 21V30" for step in dict.fromkeys(steps(kept_s)))
    return (
        f'<svg viewBox="0 0 {_TIMELINE_STEPS} 30" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path class="even" d="{"".join(segments[::2])}"/><path class="odd" d="{"".join(segments[1::2])}"/>'
        f'<path class="tick" d="{ticks}"/></svg>\n'
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _number(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(part: float, whole: float) -> str:
    return _number(part / whole) if whole else "–"


def _share(part: int, whole: int, of: str) -> str:
    return f"{100 * part / whole:.1f}% {of}" if whole else ""


def _clock(duration_s: float) -> str:
    """12.3 s, 4:05 or 1:02:03."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{_number(size_bytes)} {unit}"
        size_bytes /= 1024
    return f"{_number(size_bytes)} TiB"


# The policy is a second wall: had some text escaped its escaping, it could still neither run nor load anything.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Extraction report</title>
<style>
:root { color-scheme: light dark; --page: #fff; --card: #f5f6f8; --ink: #1c2128; --faint: #5a6472; --line: #d5dae1;
  --even: #2f6fb3; --odd: #93bbe6; --tick: #b4450f; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --card: #1e232b; --ink: #e3e7ec; --faint: #9aa5b3; --line: #363d48;
    --even: #4d8fd6; --odd: #25496f; --tick: #f0915c; --link: #7db4f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin: 2.5rem 0 .75rem; }
h3 { margin: 0; font-size: 1rem; }
a { color: var(--link); }
nav a { margin-right: .75rem; }
p, small { color: var(--faint); }
header p { color: var(--ink); font-size: 1.15rem; }
bdi { white-space: pre-wrap; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; margin: 0; }
.facts div { padding: .75rem; background: var(--card); border-radius: .5rem; }
dt { color: var(--faint); font-size: .9rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow: hidden; min-width: 5rem; }
th { font-weight: 600; }
td ul { margin: 0; padding: 0; list-style: none; }
.failures th:last-child { width: 45%; }
.word bdi { overflow-wrap: normal; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; height: .7rem; background: var(--even); border-radius: .15rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: .75rem; }
article { padding: .75rem; background: var(--card); border-radius: .5rem; overflow: hidden; }
article p { margin: .1rem 0 .5rem; font-size: .85rem; }
svg { display: block; width: 100%; height: 30px; margin-bottom: .5rem; }
img { display: block; max-width: 100%; height: auto; border-radius: .25rem; }
.even { fill: var(--even); }
.odd { fill: var(--odd); }
.tick { stroke: var(--tick); stroke-width: 2px; vector-effect: non-scaling-stroke; }
@media (max-width: 40rem) {
  .failures thead { display: none; }
  .failures tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .failures td { display: block; padding: 0; border: 0; }
  .failures .number, .failures .word { display: inline-block; min-width: 0; margin-right: .75rem; color: var(--faint); }
  .failures .number::after { content: " ×"; }
}
</style>
</head>
<body>
"""
