import json

import pytest

from pipelines import _progress
from pipelines._progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock to set by hand."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


def _lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_are_json_and_come_every_ten_seconds_and_at_the_end(clock, capsys):
    with Progress(10, unit="video") as progress:
        for second in range(1, 21):
            clock.now = 1000.0 + second
            progress.advance(1 if second % 4 == 0 else 0, quarantined=second)
    lines = _lines(capsys)
    assert [(line["videos"], line["of"], line["elapsed_s"], line["quarantined"]) for line in lines] == [
        (2, 10, 10, 10),
        (5, 10, 20, 20),
        (5, 10, 20, 20),
    ]
    assert (lines[1]["per_s"], lines[1]["left_s"]) == (0.25, 20)


def test_the_time_left_is_told_from_the_pace_of_late(clock, capsys):
    """A slow first hour says little about what follows."""
    with Progress(1000, unit="video") as progress:
        clock.now += 3600
        progress.advance(100)
        for _ in range(60):
            clock.now += 10
            progress.advance(10)
    last = _lines(capsys)[-1]
    assert (last["videos"], last["per_s"], last["left_s"]) == (700, 1.0, 300)


def test_nothing_done_promises_nothing(clock, capsys):
    with Progress(5, unit="answer"):
        pass
    assert _lines(capsys) == [{"answers": 0, "of": 5, "per_s": 0.0, "elapsed_s": 0, "left_s": None}]
