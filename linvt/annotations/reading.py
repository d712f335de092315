"""Annotation files of any known format, row by row, in constant memory."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from linvt.annotations.activitynet_qa import ACTIVITYNET_QA
from linvt.annotations.format import Format, Rows, raw_rows
from linvt.annotations.linvt_format import LINVT
from linvt.annotations.llava_format import CAPTIONS, LLAVA, SHAREGPTVIDEO
from linvt.annotations.msvd_msrvtt_qa import MSRVTT_QA, MSVD_QA
from linvt.annotations.nextqa import NEXTQA
from linvt.annotations.rows import Annotation, RowProblem
from linvt.annotations.tgif_qa import TGIF_QA
from linvt.annotations.video_chatgpt import VIDEO_CHATGPT
from linvt.annotations.videochat2_it import VIDEOCHAT2_IT
from linvt.annotations.webvid import WEBVID

logger = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {
    "linvt": LINVT,
    "llava": LLAVA,
    "llava-caption": CAPTIONS,
    "sharegptvideo": SHAREGPTVIDEO,
    "sharegptvideo-caption": CAPTIONS,
    "webvid": WEBVID,
    "video-chatgpt": VIDEO_CHATGPT,
    "videochat2-it": VIDEOCHAT2_IT,
    "activitynet-qa": ACTIVITYNET_QA,
    "msvd-qa": MSVD_QA,
    "msrvtt-qa": MSRVTT_QA,
    "tgif-qa": TGIF_QA,
    "nextqa": NEXTQA,
}
AUTO = "auto"
_LOOKED_AT = 100


def read_annotations(files: Iterable[str | Path], format: str | Sequence[str] = AUTO) -> Iterator[Annotation]:
    """Yield the rows of `files` in their order, as Annotations.

    `format` is one of `FORMATS`, or "auto" to tell each file's by its first rows; or one of these for each file. A
    broken row raises ValueError with file, line and reason: a training set is never silently thinned. Rows that the
    set's own rules leave out are counted and logged. A file that another of them is read with, such as ActivityNet-QA's
    answers, may be named too.
    """
    return _strict([read_rows(path, format) for path, format in with_formats(files, format)])


def read_rows(path: str | Path, format: str) -> Rows:
    """(line number, the Annotation or the RowProblem there) for every row of a file in one of `FORMATS`."""
    return FORMATS[format].read(Path(path))


def with_formats(files: Iterable[str | Path], format: str | Sequence[str]) -> list[tuple[Path, str]]:
    """Each of `files` with its format, one for all or one for each; without those that are read with another of them.

    Raises ValueError for an unknown format, one that cannot be told, and what is no file.
    """
    paths = [Path(file) for file in files]
    for one in {format} if isinstance(format, str) else format:
        if one not in (*FORMATS, AUTO):
            raise ValueError(f"unknown annotation format {one!r}; valid formats: {sorted(FORMATS)} and {AUTO!r}")
    formats = [format] * len(paths) if isinstance(format, str) else list(format)
    if len(formats) != len(paths):
        raise ValueError(f"{len(formats)} annotation formats for {len(paths)} files; give one for all, or one for each")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"no such annotation file: {', '.join(missing)}")
    companions = {beside for path in paths for one in FORMATS.values() for beside in one.companions(path)}
    return [
        (path, detect_format(path) if one == AUTO else one)
        for path, one in zip(paths, formats)
        if path not in companions
    ]


def detect_format(path: str | Path) -> str:
    """The format of a file, by its first rows that can be read and, where two fit, by its name.

    Raises ValueError where none fits, or several do.
    """
    path, row = Path(path), None
    for number, (_, raw) in enumerate(raw_rows(path)):
        if isinstance(raw, dict):
            row = raw
            break
        if number == _LOOKED_AT:
            break
    if row is None:
        raise ValueError(f"{path}: its format cannot be told, since none of its first rows can be read; give --format")
    fitting = [name for name, format in FORMATS.items() if format.recognises(row)]
    if len(fitting) > 1:
        by_name = [name for name in fitting if name.split("-")[0] in path.name.lower()]
        fitting = by_name if len(by_name) == 1 else fitting
    if len(fitting) != 1:
        which = f"it may be {' or '.join(fitting)}" if fitting else "none of the known ones has rows like this"
        raise ValueError(f"{path}: its format cannot be told from a row of {sorted(row)}: {which}; give --format")
    return fitting[0]


def _strict(files: Iterable[Rows]) -> Iterator[Annotation]:
    for rows in files:
        left_out: Counter[str] = Counter()
        for _, row in rows:
            if isinstance(row, Annotation):
                yield row
                continue
            if row.is_broken:
                raise ValueError(
                    f"{row}. `python -m linvt.annotations inspect` lists all such rows, and "
                    "`python -m linvt.annotations convert --on-problem skip` writes a file without them"
                )
            left_out[_place(row)] += 1
        for place, count in left_out.items():
            logger.info("%d rows left out: %s", count, place)


def _place(row: RowProblem) -> str:
    return f"{row.file}: {row.reason}"
