"""What a reader of one format is, and how the rows of a file come to it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linvt.annotations.json_rows import read_array, read_lines
from linvt.annotations.rows import Annotation, LeftOut, RowProblem
from linvt.annotations.table_rows import read_table

RawRow = Mapping[str, Any]
ParseRow = Callable[[RawRow], Annotation]
"""Raises ValueError for a broken row, saying which field is wrong, and LeftOut for one that the set leaves out."""
Rows = Iterator[tuple[int, Annotation | RowProblem]]
"""(line number, what the row there gives)."""


def _none(path: Path) -> tuple[Path, ...]:
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A published format: how its files are told from others, and read."""

    recognises: Callable[[RawRow], bool]
    """Whether a file whose first row is this may be of the format."""
    read: Callable[[Path], Rows]
    companions: Callable[[Path], tuple[Path, ...]] = _none
    """The files beside a file that are read with it, where they exist."""


def has(*names: str, without: Iterable[str] = ()) -> Callable[[RawRow], bool]:
    """`recognises` of rows that have all of the fields `names`, and none of those in `without`."""
    return lambda row: row.keys() >= set(names) and row.keys().isdisjoint(without)


def reader(parse: ParseRow) -> Callable[[Path], Rows]:
    """`read` of a format whose rows stand for themselves."""
    return lambda path: parsed_rows(path, parse)


def parsed_rows(path: Path, parse: ParseRow) -> Rows:
    """What `parse` makes of every row of a file."""
    for number, (line, raw) in enumerate(raw_rows(path), start=1):
        if isinstance(raw, str):
            yield line, RowProblem(str(path), line, number, raw, True)
            continue
        try:
            annotation = parse(raw)
        except ValueError as error:
            yield line, RowProblem(str(path), line, number, str(error), True)
        except LeftOut as rule:
            yield line, RowProblem(str(path), line, number, str(rule), False)
        else:
            yield line, annotation


def raw_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, the row that starts there or what is wrong with it), in constant memory.

    JSON lines, one JSON array, and a table are told apart by their first character.
    """
    with path.open("rb") as file:
        first = _first_byte(file)
        read = read_array if first == b"[" else read_lines if first == b"{" else read_table
        yield from read(file)


def _first_byte(file: Any) -> bytes:
    """The first byte that is not blank; the file is at its start again afterwards."""
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    while (byte := file.read(1)).isspace():
        pass
    file.seek(0)
    return byte
