"""Rows from files of any size and in any state: each is read or named, and memory does not grow."""

import csv
import io
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linvt.annotations.format import raw_rows
from linvt.annotations.json_rows import read_array
from linvt.annotations.table_rows import read_table

_cell = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)


def _table(text: str | bytes):
    return list(read_table(io.BytesIO(text if isinstance(text, bytes) else text.encode())))


@settings(deadline=None)
@given(rows=st.lists(st.tuples(_cell, _cell, _cell), max_size=6), delimiter=st.sampled_from(",\t"))
def test_a_table_gives_back_what_was_written(rows, delimiter):
    rows = [row for row in rows if any(row)]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([("a", "b", "c"), *rows])
    text = file.getvalue()
    read = _table(text)
    assert [tuple(row.values()) for _, row in read] == rows
    # Where a row starts: after the lines of those before it.
    lines = io.StringIO(newline="")
    starts = []
    for row in [("a", "b", "c"), *rows]:
        starts.append(lines.getvalue().count("\n") + 1)
        csv.writer(lines, delimiter=delimiter).writerow(row)
    assert [line for line, _ in read] == starts[1:]


@pytest.mark.parametrize("broken", ['3,"never closed', '3,"closed" badly', "3", "3,4,5", b"3,\xff", '3,"a\n', '"\n\n"'])
@pytest.mark.parametrize("num_after", [0, 1, 5000])
def test_a_broken_row_of_a_table_costs_itself_alone(broken, num_after):
    broken = broken if isinstance(broken, bytes) else broken.encode()
    after = b"".join(b"%d,x\n" % n for n in range(num_after))
    read = _table(b'a,b\n1,"two\nlines"\n' + broken + b"\n" + after)
    assert read[0] == (2, {"a": "1", "b": "two\nlines"})
    problems = [line for line, row in read if isinstance(row, str)]
    assert problems[0] == 4
    assert set(problems) <= set(range(4, 5 + broken.count(b"\n")))
    first_line = 5 + broken.count(b"\n")
    good = [(line, row) for line, row in read[1:] if not isinstance(row, str)]
    assert good == [(first_line + n, {"a": str(n), "b": "x"}) for n in range(num_after)]


@pytest.mark.parametrize("text", ["", "\n\n", b"a,\xff\n1,2\n", '"a,b\n1,2\n'])
def test_a_table_without_a_header_gives_no_rows(text):
    assert [row for _, row in _table(text) if isinstance(row, dict)] == []


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_objects = st.lists(st.dictionaries(st.text(max_size=5), _json, max_size=4), max_size=6)


class _Trickle(io.BytesIO):
    """A file that gives a few bytes at a time, so that every row is cut somewhere."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(3, size) if size and size > 0 else size)


@settings(deadline=None)
@given(rows=_objects, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_an_array_that_comes_in_pieces_gives_back_what_was_written(rows, indent, ascii_only):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    read = list(read_array(_Trickle(text.encode("utf-8", "surrogatepass" if ascii_only else "strict"))))
    assert [row for _, row in read] == rows
    if indent is None:
        assert {line for line, _ in read} <= {1}


@settings(deadline=None)
@given(rows=_objects, cut=st.integers(min_value=1), junk=st.sampled_from(["", "x", '"', "}", "]", "\\", "\x00"]))
def test_a_damaged_array_gives_the_rows_before_the_damage_and_then_names_it(rows, cut, junk):
    text = json.dumps(rows)
    cut = 1 + cut % len(text)
    read = list(read_array(_Trickle((text[:cut] + junk).encode())))
    good = [row for _, row in read if isinstance(row, dict)]
    num_before = max(n for n in range(len(rows) + 1) if n == 0 or len(json.dumps(rows[:n])) - 1 <= cut)
    assert good[:num_before] == rows[:num_before]
    try:
        assert good == json.loads(text[:cut] + junk)
    except json.JSONDecodeError:
        assert isinstance(read[-1][1], str)
        assert len(good) == len(read) - 1
        assert len(good) <= num_before + 1  # What was cut may have become whole by the junk.


def test_bytes_that_are_no_text_cost_their_own_row(tmp_path):
    array = b'[{"a": "\xc3\xa9"},\n {"a": "\xff"},\n {"a": "x"}]'
    lines = b'{"a": "\xc3\xa9"}\n{"a": "\xff"}\n\n{"a": "x"}'
    for data, last_line in ((array, 3), (lines, 4)):
        (tmp_path / "a").write_bytes(data)
        first, second, third = raw_rows(tmp_path / "a")
        assert (first, third) == ((1, {"a": "é"}), (last_line, {"a": "x"}))
        assert second[0] == 2
        assert second[1].startswith("not UTF-8")


@pytest.mark.parametrize("form", ["array", "lines", "table"])
def test_memory_does_not_grow_with_the_file(tmp_path, form):
    row = {"video_id": "v_abc", "q": "What is the man doing in the video? " * 4, "a": "He runs. " * 20}
    path, num_rows = tmp_path / "a", 26_000
    with path.open("w", encoding="utf-8") as file:
        if form == "table":
            file.write(",".join(row) + "\n" + (",".join(row.values()) + "\n") * num_rows)
        else:
            separator = ", " if form == "array" else "\n"
            text = separator.join([json.dumps(row)] * num_rows)
            file.write(f"[{text}]" if form == "array" else text)
    assert path.stat().st_size > 8_000_000
    tracemalloc.start()
    try:
        assert sum(found == row for _, found in raw_rows(path)) == num_rows
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()
