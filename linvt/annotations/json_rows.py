"""The rows of a JSON file, one at a time: JSON lines, or one array, of any size in constant memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from linvt.annotations.fields import shorten

_CHUNK_BYTES = 1 << 20
_LONGEST_ROW = 64 << 20  # characters; beyond that, a quote or a bracket is missing
# An error this near the end of what was read may be a word or an escape that was cut there.
_LONGEST_WORD = 16
_BLANKS = re.compile(r"[ \t\n\r]*")
_CUT_OFF = "the array is not closed; is the file complete?"
_REST = "; the rest of the array was not read"


def read_lines(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, the object there or what is wrong with it) of every line that is not blank."""
    for number, line in enumerate(file, start=1):
        if line.isspace():
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            yield number, _object(json.loads(text))
        except UnicodeDecodeError as error:
            yield number, f"not UTF-8: {error.reason} at byte {error.start} of the line"
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"


def read_array(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, the element that starts there or what is wrong with it) of every element of a JSON array.

    What is no JSON ends the reading: where the next element would start cannot be known.
    """
    text, decode = _Text(file), json.JSONDecoder().raw_decode
    assert text.next_character() == "["
    text.position += 1
    expects_element = False
    while True:
        character = text.next_character()
        if not character:
            yield text.line, _CUT_OFF
            return
        if character == "]" and not expects_element:
            text.position += 1
            if text.next_character():
                yield text.line, f"not JSON: {text.excerpt()} after the end of the array"
            return
        try:
            row, end = text.decoded(decode)
        except (ValueError, RecursionError) as error:  # A ValueError of its own for a number of thousands of digits.
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield text.line, (_CUT_OFF if text.is_at_end else f"not JSON: {what} near {text.excerpt()}{_REST}")
            return
        yield text.line, _object(row) if text.is_utf8(end) else "not UTF-8"
        text.position = end
        character = text.next_character()
        expects_element = character == ","
        if expects_element:
            text.position += 1
        elif character and character != "]":
            yield text.line, f"not JSON: expected ',' or ']', got {text.excerpt()}{_REST}"
            return


class _Text:
    """A window on a file's text that moves on with `position`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._buffer, self._is_complete, self._line, self._counted = "", False, 1, 0
        self._has_strays = False
        self.position = 0
        self.is_at_end = False
        """Whether the last `decoded` failed at the very end of the file."""

    @property
    def line(self) -> int:
        self._line += self._buffer.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def next_character(self) -> str:
        """The next one that is not blank, where `position` is then; none at the end."""
        while True:
            match = _BLANKS.match(self._buffer, self.position)
            assert match is not None
            self.position = match.end()
            if self.position < len(self._buffer) or self._is_complete:
                return self._buffer[self.position : self.position + 1]
            self._read_on()

    def decoded(self, decode: Any) -> tuple[Any, int]:
        """The JSON value at `position`, and where it ends. Raises what `decode` does."""
        while True:
            try:
                value, end = decode(self._buffer, self.position)
                if end < len(self._buffer) or self._is_complete:
                    return value, end
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated")
                may_be_cut = is_open or error.pos > len(self._buffer) - _LONGEST_WORD
                is_too_long = len(self._buffer) - self.position > _LONGEST_ROW
                if self._is_complete or not may_be_cut or is_too_long:
                    self.is_at_end = self._is_complete and (is_open or error.pos >= len(self._buffer.rstrip()))
                    raise
            self._read_on()

    def is_utf8(self, end: int) -> bool:
        """Whether all bytes from `position` to `end` were."""
        if not self._has_strays:
            return True
        return not any("\udc80" <= character <= "\udcff" for character in self._buffer[self.position : end])

    def excerpt(self) -> str:
        return shorten(self._buffer[self.position : self.position + 60])

    def _read_on(self) -> None:
        """At least doubles what is left, so that a long row is not tried over and over."""
        _ = self.line
        left = self._buffer[self.position :]
        data = self._file.read(max(_CHUNK_BYTES, len(left)))
        more = self._decoder.decode(data, final=not data)
        self._buffer, self.position, self._counted, self._is_complete = left + more, 0, 0, not data
        self._has_strays = not self._buffer.isascii() and any("\udc80" <= c <= "\udcff" for c in set(self._buffer))


def _object(row: Any) -> dict[str, Any] | str:
    return row if isinstance(row, dict) else f"a row must be a JSON object, got {shorten(row)}"
