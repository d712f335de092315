"""The rows of a comma- or tab-separated file with a header, one at a time."""

import csv
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO


def read_table(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, the fields by their names or what is wrong with them) of every row; blank lines are no rows.

    Fields are told apart by tabs if the header has one, else by commas. A quoted field may hold line ends. A row whose
    quotes do not fit, or with fields too many or too few, costs its first line alone: an open quote takes in good rows.
    Without a header nothing can be read.
    """
    lines = _Lines(file)
    delimiter = "\t" if "\t" in lines.peek() else ","
    names: list[str] | None = None
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin()
        try:
            fields = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.first, f"not a row: {error}; a quote in it does not fit"
            if names is None:
                return
            lines.take_back()
            records = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        if lines.has_strays:
            yield lines.first, "not UTF-8"
            if names is None:
                return
            lines.take_back()
        elif not fields:
            continue
        elif names is None:
            names = [name.strip() for name in fields]
        elif len(fields) != len(names):
            yield lines.first, f"{len(fields)} fields, the header has {len(names)}"
            lines.take_back()
        else:
            yield lines.first, dict(zip(names, fields))


class _Lines:
    """The lines of a file as a csv.reader takes them, with the means to take back all but the first of a row."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._taken_back: deque[bytes] = deque()
        self._of_row: list[bytes] = []
        self._number = 0
        self.first = 1
        """Number of the line that the row starts in."""
        self.has_strays = False
        """Whether a line of the row is not UTF-8."""

    def begin(self) -> None:
        """A row starts here."""
        self._of_row.clear()
        self.has_strays = False
        self.first = self._number + 1

    def take_back(self) -> None:
        """Gives the lines of the row after its first once more."""
        self._taken_back.extendleft(reversed(self._of_row[1:]))
        self._number = self.first

    def peek(self) -> str:
        """The next line, which stays."""
        line = self._file.readline()
        self._taken_back.append(line.removeprefix(b"\xef\xbb\xbf"))
        return line.decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._taken_back.popleft() if self._taken_back else next(self._file)
        if not line:
            raise StopIteration
        self._number += 1
        self._of_row.append(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.has_strays = True
            return line.decode(errors="replace")
