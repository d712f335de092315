"""Columns of an index as sequences and mappings of Python strings, made one by one when they are asked for.

An index may have many millions of rows: as Python objects, their ids alone would take ten times an Arrow column's
memory, in every training worker.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np
import pyarrow as pa

_ROWS_AT_ONCE = 50_000


class Strings(Sequence[str]):
    """The rows [start, stop) of a column of strings."""

    def __init__(self, column: pa.ChunkedArray, start: int = 0, stop: int | None = None) -> None:
        self._column = column.slice(start, None if stop is None else stop - start)

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self._column[at].as_py() for at in range(len(self))[index]]
        return self._column[range(len(self))[index]].as_py()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Strings) and self._column.equals(other._column)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self._column), _ROWS_AT_ONCE):
            yield from self._column.slice(start, _ROWS_AT_ONCE).to_pylist()


class RowFinder:
    """Finds the row of a string in a column of unlike strings, by 12 bytes a row."""

    def __init__(self, strings: Strings) -> None:
        self._strings = strings
        hashes = np.fromiter(map(hash, strings), np.int64, len(strings))
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._rows = order.astype(np.uint32 if len(order) < 2**32 else np.int64)

    def __call__(self, value: str) -> int | None:
        """None where there is no such row."""
        wanted = hash(value)
        at = int(np.searchsorted(self._hashes, wanted))
        while at < len(self._hashes) and self._hashes[at] == wanted:
            row = int(self._rows[at])
            if self._strings[row] == value:
                return row
            at += 1
        return None


class StringMap(Mapping[str, str]):
    """From the strings of one column to those of another in the same rows."""

    def __init__(self, names: Strings, values: Strings) -> None:
        self._names, self._values = names, values
        self._find = RowFinder(names)

    def __getitem__(self, name: str) -> str:
        row = self._find(name) if isinstance(name, str) else None
        if row is None:
            raise KeyError(name)
        return self._values[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class StringGroups(Mapping[int, Sequence[str]]):
    """The strings of one column by the numbers in another, where equal numbers follow each other."""

    def __init__(self, numbers: np.ndarray, column: pa.ChunkedArray) -> None:
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        stops = np.append(starts[1:], len(numbers))
        self._column = column
        self._border_of = {
            number: (start, stop)
            for number, start, stop in zip(numbers[starts].tolist(), starts.tolist(), stops.tolist())
        }

    def __getitem__(self, number: int) -> Sequence[str]:
        return Strings(self._column, *self._border_of[number])

    def __iter__(self) -> Iterator[int]:
        return iter(self._border_of)

    def __len__(self) -> int:
        return len(self._border_of)
