"""What annotation files hold: formats, counts, broken rows, missing media, duplicates within and across files."""

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from linvt.annotations.config import InspectConfig
from linvt.annotations.duplicates import Keys, media_key, sample_keys
from linvt.annotations.media import MediaFolder
from linvt.annotations.reading import FORMATS, read_rows, with_formats
from linvt.annotations.rows import Annotation, RowProblem


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Prints what is in the files, and returns the same as plain values. Broken rows are counted, not raised.

    Memory grows by some 30 bytes a sample, for the search for duplicates. Raises ValueError for what is no annotation
    file.
    """
    files = with_formats(config.files, config.format)
    media = MediaFolder(config.media_root) if config.media_root else None
    tallies = []
    for path, format in files:
        tally = _Tally(path, format)
        for line, row in tqdm(read_rows(path, format), desc=path.name, unit=" rows", disable=None, mininterval=1):
            tally.count(line, row, config, media)
        tally.finish()
        tallies.append(tally)
    duplicates = _duplicates(tallies, config.show)
    reports = [tally.report(media is not None) for tally in tallies]
    for report in reports:
        _print_file(report, config)
    for pair in duplicates["pairs"]:
        _print_pair(pair)
    sums = {name: sum(report[name] for report in reports) for name in ("rows", "samples", "broken", "left_out")}
    missing = {"missing_media": sum(report["missing_media"] for report in reports)} if media else {}
    return {**sums, **missing, "duplicates": duplicates, "files": reports}


class _Tally:
    """The counts of one file."""

    def __init__(self, path: Path, format: str) -> None:
        self.path, self.format = path, format
        self.rows = self.captions = self.questions = self.sections = self.left_out = self.broken = 0
        self.rules: Counter[str] = Counter()
        self.broken_rows: list[dict[str, Any]] = []
        self.rows_missing = 0
        self.missing_examples: list[str] = []
        self._missing, self._media, self._samples = Keys(), Keys(), Keys()
        self._last_media_id: str | None = None

    def count(self, line: int, row: Annotation | RowProblem, config: InspectConfig, media: MediaFolder | None) -> None:
        if isinstance(row, RowProblem):
            self.rows += row.file == str(self.path)
            self._count_problem(row, config.show)
            return
        self.rows += 1
        self.captions += row.caption is not None
        self.questions += len(row.turns)
        self.sections += row.section_s is not None
        self._samples.extend(sample_keys(row))
        media_id = config.media_prefix + row.media_id
        if media_id != self._last_media_id:  # Rows about one video mostly follow each other.
            self._media.add(media_key(media_id))
            self._last_media_id, self._problem = media_id, _problem_of(media_id, media) if media else None
        if self._problem is not None:
            self.rows_missing += 1
            self._missing.add(hash(media_id) & ((1 << 64) - 1))
            if len(self.missing_examples) < config.show and self._problem not in self.missing_examples:
                self.missing_examples.append(self._problem)

    def _count_problem(self, row: RowProblem, show: int) -> None:
        if not row.is_broken:
            self.left_out += 1
            self.rules[row.reason] += 1
            return
        self.broken += 1
        if len(self.broken_rows) < show:
            self.broken_rows.append({"file": row.file, "line": row.line, "row": row.row, "reason": row.reason})

    def finish(self) -> None:
        """Sorts what was collected."""
        num_samples = len(self._samples)
        self.samples, self.repeated = self._samples.take()
        self.within = num_samples - len(self.samples)
        self.media, _ = self._media.take()
        self.num_missing = len(self._missing.take()[0])

    def report(self, has_root: bool) -> dict[str, Any]:
        missing = {
            "missing_media": self.num_missing,
            "rows_with_missing_media": self.rows_missing,
            "missing_examples": self.missing_examples,
        }
        return {
            "file": str(self.path),
            "format": self.format,
            "read_with": {str(beside): beside.is_file() for beside in FORMATS[self.format].companions(self.path)},
            "rows": self.rows,
            "samples": self.captions + self.questions,
            "captions": self.captions,
            "questions": self.questions,
            "rows_about_a_section": self.sections,
            "media": len(self.media),
            "left_out": self.left_out,
            "left_out_because": dict(self.rules),
            "broken": self.broken,
            "broken_rows": self.broken_rows,
            **(missing if has_root else {}),
            "duplicates": self.within,
        }


@lru_cache(maxsize=1 << 16)
def _problem_of(media_id: str, media: MediaFolder) -> str | None:
    """None where there is nothing to say against a medium."""
    try:
        return None if media.find(media_id) else media_id
    except ValueError as error:
        return str(error)


def _duplicates(tallies: list[_Tally], show: int) -> dict[str, Any]:
    """How many samples stand in a file more than once, and in which pairs of files, with examples."""
    wanted: dict[int, tuple[int, int]] = {}
    pairs = []
    for (i, one), (j, other) in itertools.combinations_with_replacement(enumerate(tallies), 2):
        same = one.repeated if i == j else np.intersect1d(one.samples, other.samples, assume_unique=True)
        shared = 0 if i == j else len(np.intersect1d(one.media, other.media, assume_unique=True))
        if not len(same) and not shared:
            continue
        wanted.update({int(key): (i, j) for key in same[:show]})
        pairs.append({
            "files": [str(one.path)] if i == j else [str(one.path), str(other.path)],
            "samples": one.within if i == j else len(same),
            "shared_media": shared,
            "examples": [],
        })  # fmt: skip
    places = _places(tallies, wanted) if wanted else {}
    for pair in pairs:
        of_pair = [found for found in places.values() if {place["file"] for place in found} == set(pair["files"])]
        pair["examples"] = of_pair[:show]
    return {
        "within": sum(tally.within for tally in tallies),
        "across": sum(pair["samples"] for pair in pairs if len(pair["files"]) == 2),
        "pairs": pairs,
    }


def _places(tallies: list[_Tally], wanted: dict[int, tuple[int, int]]) -> dict[int, list[dict[str, Any]]]:
    """Where some samples stand: the first place in each of two files, or the first two in one."""
    places: dict[int, list[dict[str, Any]]] = {key: [] for key in wanted}
    for number, line, row, annotation in _annotations(tallies):
        for key in sample_keys(annotation):
            if key not in wanted or number not in wanted[key] or len(places[key]) == 2:
                continue
            file = str(tallies[number].path)
            if wanted[key][0] == wanted[key][1] or all(place["file"] != file for place in places[key]):
                places[key].append({"file": file, "line": line, "row": row, "media": annotation.media_id})
    return {key: found for key, found in places.items() if len(found) == 2}


def _annotations(tallies: list[_Tally]) -> Iterator[tuple[int, int, int, Annotation]]:
    """(number of the file, line, row, what is there)."""
    for number, tally in enumerate(tallies):
        row_number = 0
        for line, row in read_rows(tally.path, tally.format):
            row_number += isinstance(row, Annotation) or row.file == str(tally.path)
            if isinstance(row, Annotation):
                yield number, line, row_number, row


def _print_file(report: dict[str, Any], config: InspectConfig) -> None:
    print(f"{report['file']}: {report['format']}")
    for beside, is_there in report["read_with"].items():
        print(f"  {'read with' if is_there else 'without'} {beside}{'' if is_there else ', which is not there'}")
    print(
        f"  {report['rows']:,} rows, {report['samples']:,} samples ({report['captions']:,} captions, "
        f"{report['questions']:,} questions) about {report['media']:,} media"
    )
    if report["rows_about_a_section"]:
        print(f"  {report['rows_about_a_section']:,} rows speak of a section of their video")
    for reason, count in report["left_out_because"].items():
        print(f"  {count:,} rows left out: {reason}")
    print(f"  {report['broken']:,} broken rows")
    for row in report["broken_rows"]:
        print(f"    {row['file']}:{row['line']}: {row['reason']} (row {row['row']})")
    if "missing_media" in report:
        print(f"  {report['missing_media']:,} media missing below {config.media_root}")
        for name in report["missing_examples"]:
            print(f"    {name}")
    print(f"  {report['duplicates']:,} samples that are in it before")


def _print_pair(pair: dict[str, Any]) -> None:
    if len(pair["files"]) == 2:
        print(f"{' and '.join(pair['files'])}: {pair['samples']:,} samples and {pair['shared_media']:,} media in both")
    else:
        print(f"{pair['files'][0]}: {pair['samples']:,} samples again")
    for one, other in pair["examples"]:
        places = (f"{place['file']}:{place['line']} (row {place['row']})" for place in (one, other))
        print(f"  {' and '.join(places)}: {one['media']}")
