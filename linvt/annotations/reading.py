"""Annotation files of any known format, row by row."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from linvt.annotations import linvt_format, llava_format
from linvt.annotations.rows import Annotation

FORMATS: dict[str, Callable[[dict[str, Any]], Annotation]] = {
    "linvt": linvt_format.parse_row,
    "llava": llava_format.parse_row,
    "llava-caption": llava_format.parse_caption_row,
}


def read_annotations(files: Iterable[str | Path], format: str) -> Iterator[Annotation]:
    """Yield the rows of `files` in their order, as Annotations.

    A file is JSON lines or one JSON array, told apart by its first character; JSON lines are read as a stream. A row
    that cannot be read raises ValueError with file:line and the reason: a training set is never silently thinned.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown annotation format {format!r}; valid formats: {sorted(FORMATS)}")
    paths = [Path(file) for file in files]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"no such annotation file: {', '.join(missing)}")
    return _read_files(paths, FORMATS[format])


def _read_files(paths: list[Path], parse_row: Callable[[dict[str, Any]], Annotation]) -> Iterator[Annotation]:
    for path in paths:
        for line_number, row in _iterate_rows(path):
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line_number}: a row must be a JSON object, got {_shorten(row)}")
            try:
                annotation = parse_row(row)
            except ValueError as error:
                raise ValueError(f"{path}:{line_number}: {error}") from error
            yield annotation


def _iterate_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, decoded JSON value) of every row; blank lines are skipped."""
    with path.open(encoding="utf-8") as file:
        if _first_character(file) == "[":
            yield from _iterate_array(path, file.read())
            return
        for line_number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}:{line_number}: not JSON: {error}") from error
                yield line_number, row


def _first_character(file: Any) -> str:
    """The first character that is not blank; the file is at its start again afterwards."""
    character = file.read(1)
    while character.isspace():
        character = file.read(1)
    file.seek(0)
    return character


def _iterate_array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array one at a time, so that each is known by its line."""
    decoder = json.JSONDecoder()
    position, line_number, counted_to = text.index("[") + 1, 1, 0
    expects_element = True
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        line_number += text.count("\n", counted_to, position)
        counted_to = position
        if position >= len(text):
            raise ValueError(f"{path}:{line_number}: the array is not closed; is the file complete?")
        if text[position] == "]" and _is_blank(text, position + 1):
            return
        if not expects_element:
            if text[position] != ",":
                raise ValueError(f"{path}:{line_number}: expected ',' or ']', got {text[position : position + 20]!r}")
            position += 1
            expects_element = True
            continue
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
        yield line_number, row
        expects_element = False


def _is_blank(text: str, start: int) -> bool:
    return not text[start:].strip()


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
