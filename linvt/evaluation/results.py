"""Answers on disk, one JSON line each, so that an evaluation that stopped goes on where it was."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

RowT = TypeVar("RowT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One method's answer to one question. `prediction` is None where there was no media to ask about."""

    method: str
    question_id: str
    media_id: str
    kind: str
    family: str
    question: str
    answer: str
    prediction: str | None
    correct: bool

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.question_id


class RowLog(Generic[RowT]):
    """An append-only file of JSON lines, each a `row_type`. A line that a crash cut short is dropped when it opens."""

    def __init__(self, path: Path, row_type: type[RowT]) -> None:
        self.path, self.rows = path, read_rows(path, row_type)
        # Dropped from the file too, or the next line would be glued to it.
        write_atomically(path, "".join(map(_line, self.rows)))
        self._file = path.open("a")

    def append(self, rows: Iterable[RowT]) -> None:
        """Adds rows and has them on disk when it returns."""
        for row in rows:
            self.rows.append(row)
            self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class ResultLog(RowLog[Result]):
    """`results.jsonl` beside `run.json`, which says what the answers were made with."""

    def __init__(
        self, out: Path, identity: dict[str, Any], *, on_existing: Literal["resume", "overwrite", "fail"]
    ) -> None:
        """Opens `out` for writing. Raises ValueError if it holds another run's results, or any under "fail"."""
        path = out / "results.jsonl"
        open_run(out, identity, on_existing=on_existing, holds=[path])
        super().__init__(path, Result)

    @property
    def results(self) -> list[Result]:
        return self.rows

    @property
    def done(self) -> set[tuple[str, str]]:
        """(method, question id) of every answer held."""
        return {result.key for result in self.rows}


def open_run(
    out: Path, identity: dict[str, Any], *, on_existing: Literal["resume", "overwrite", "fail"], holds: Iterable[Path]
) -> None:
    """Makes `out` the folder of the run that `identity` describes, in run.json; "overwrite" removes what it `holds`.

    Raises ValueError if it is another run's, or under "fail" any run's.
    """
    run_path = out / "run.json"
    if run_path.exists() and on_existing == "fail":
        raise ValueError(f"{out} holds results already; pass --on-existing resume or overwrite, or another --out")
    if run_path.exists() and on_existing == "overwrite":
        run_path.unlink()
        for path in holds:
            path.unlink(missing_ok=True)
    if run_path.exists():
        _check_identity(json.loads(run_path.read_text()), identity, out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(run_path, json.dumps(identity, indent=1) + "\n")


def read_results(path: Path) -> list[Result]:
    """The results in a jsonl file, without a last line that a crash cut short. No file is no results."""
    return read_rows(path, Result)


def read_rows(path: Path, row_type: type[RowT]) -> list[RowT]:
    """The rows in a jsonl file, without a last line that a crash cut short. No file is no rows."""
    if not path.exists():
        return []
    *lines, _cut_short = path.read_text(encoding="utf-8").split("\n")
    return [row_type(**json.loads(line)) for line in lines]


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that readers see all of it or none."""
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _line(row: Any) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def _check_identity(found: dict[str, Any], expected: dict[str, Any], out: Path) -> None:
    expected = json.loads(json.dumps(expected))
    differing = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    if differing:
        pairs = ", ".join(f"{key}: {found.get(key)!r} there, {expected.get(key)!r} now" for key in differing)
        raise ValueError(
            f"{out} holds the results of another run ({pairs}); use another --out or --on-existing overwrite"
        )
