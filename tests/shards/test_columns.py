import numpy as np
import pyarrow as pa
import pytest

from linvt.shards.columns import RowFinder, StringGroups, StringMap, Strings


def _column(values: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([values[:3], values[3:]], pa.string())


def test_strings_are_those_of_the_column():
    values = [f"video {i}" for i in range(8)]
    strings = Strings(_column(values))
    assert list(strings) == values
    assert (strings[0], strings[-1], strings[2:5], len(strings)) == (values[0], values[-1], values[2:5], 8)
    assert list(Strings(_column(values), 2, 7)) == values[2:7]
    assert strings == Strings(pa.chunked_array([values]))
    with pytest.raises(IndexError):
        strings[8]


@pytest.mark.parametrize("hashing", [hash, lambda _: 5], ids=["python's hash", "all hashes equal"])
def test_each_string_is_found_in_its_row_and_no_other_is(hashing, monkeypatch):
    monkeypatch.setattr("linvt.shards.columns.hash", hashing, raising=False)
    values = [f"video {i}" for i in np.random.default_rng(0).permutation(50)]
    find = RowFinder(Strings(_column(values)))
    assert [find(value) for value in values] == list(range(50))
    assert find("video 50") is None


def test_maps_read_as_dictionaries():
    names, values = ["b", "a", "c", "e"], ["1", "2", "3", "4"]
    mapping = StringMap(Strings(_column(names)), Strings(_column(values)))
    assert dict(mapping) == dict(zip(names, values))
    assert ("d" in mapping, 5 in mapping, mapping.get("d")) == (False, False, None)


def test_groups_are_runs_of_one_number():
    groups = StringGroups(np.array([0, 0, 3, 4, 4, 4]), _column(list("abcdef")))
    assert {number: list(members) for number, members in groups.items()} == {
        0: ["a", "b"],
        3: ["c"],
        4: ["d", "e", "f"],
    }
    assert "e" in groups[4]
    with pytest.raises(KeyError):
        groups[1]
