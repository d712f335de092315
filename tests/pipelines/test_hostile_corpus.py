"""Extraction of media that are broken, odd or oddly named: no input is lost, none takes the job down with it."""

import filecmp
import itertools
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from linvt.extraction.config import ExtractConfig
from linvt.extraction.rows import STAGE_SECONDS
from linvt.shards import read_cache
from pipelines.extract import extract
from tests.extraction.hostile_corpus import Expected, write_hostile_corpus
from tests.media import write_video

pytestmark = pytest.mark.ray
TIMINGS = list(STAGE_SECONDS.values())


@pytest.fixture(scope="module")
def config(tiny_llava):
    return ExtractConfig(
        videos="",
        backbone=tiny_llava,
        out="",
        detector="none",
        num_frames=6,
        samples_per_shard=16,
        max_candidates=32,
        encode_batch_size=4,
        decode_stall_timeout_s=3,
        decode_memory_mb=512,
        num_decode_workers=2,
        num_encode_workers=1,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return folder, write_hostile_corpus(folder)


@pytest.fixture(scope="module")
def extracted(config, corpus, ray_cluster, tmp_path_factory):
    config = replace(
        config, videos=str(corpus[0] / "corpus.jsonl"), out=str(tmp_path_factory.mktemp("extracted") / "out")
    )
    return config, extract(config)


def _rows(out: str) -> dict[str, dict]:
    rows = pq.read_table(Path(out, "videos.parquet")).to_pylist()
    assert len({row["video_id"] for row in rows}) == len(rows)
    return {row["video_id"]: row for row in rows}


def _seen(row: dict, must: Expected) -> Expected:
    """What became of an input, as far as `must` says anything about it."""
    is_counted = must.num_frames is not None
    return Expected(
        kind=row["kind"],
        num_frames=row["num_frames"] if is_counted else None,
        num_bad_packets=row["num_bad_packets"] if is_counted else 0,
        size=(row["width"], row["height"]) if must.size else None,
        stage=row["stage"],
        error_class=row["error_class"],
    )


def test_every_input_ends_as_it_must(extracted, corpus):
    config, summary = extracted
    expected, rows = corpus[1], _rows(config.out)
    assert len(expected) > 130
    assert rows.keys() == expected.keys()
    seen = {name: _seen(rows[name], must) for name, must in expected.items()}
    assert {name: (seen[name], rows[name]["message"]) for name in seen if seen[name] != expected[name]} == {}

    committed = {name for name, must in expected.items() if must.error_class is None}
    assert {name for name, row in rows.items() if row["status"] == "committed"} == committed
    quarantined = [row for row in rows.values() if row["status"] == "quarantined"]
    assert all(row["stage"] and row["error_class"] and row["message"] and row["key"] is None for row in quarantined)
    counts = {name: summary[name] for name in ("inputs", "committed", "quarantined", "shards")}
    assert counts == {
        "inputs": len(expected),
        "committed": len(committed),
        "quarantined": len(quarantined),
        "shards": -(-len(expected) // 16),
    }
    assert list(Path(config.out, "spool").iterdir()) == []

    cache = read_cache(config.out)
    assert cache.video_ids.keys() == committed
    for sample in cache:
        row = rows[sample.video_id]
        assert len(sample.tokens) == len(row["kept_frames"]) == min(6, row["num_frames"])
        times_s = [*sample.timestamps_s, sample.duration_s]
        assert times_s[0] >= 0
        assert sample.kind == "image" or all(one < other for one, other in itertools.pairwise(times_s))


def test_other_workers_and_tasks_give_the_same_bytes_and_reasons(extracted, tmp_path):
    config = extracted[0]
    again = replace(config, out=str(tmp_path / "out"), num_decode_workers=1, videos_per_task=1)
    extract(again)
    shards = [sorted(path.name for path in Path(out, "shards").iterdir()) for out in (config.out, again.out)]
    assert shards[0] == shards[1]
    names = [*(f"shards/{name}" for name in shards[0]), "index.parquet"]
    assert filecmp.cmpfiles(config.out, again.out, names, shallow=False) == (names, [], [])
    before, after = (
        pq.read_table(Path(out, "videos.parquet")).drop_columns(TIMINGS) for out in (config.out, again.out)
    )
    assert before.equals(after)


def test_what_was_repaired_or_put_in_place_is_committed_and_nothing_else_moves(extracted, corpus):
    config, summary = extracted
    folder, before, good = corpus[0], _rows(config.out), (corpus[0] / "good.mp4").read_bytes()
    broken = (folder / "noise.mp4").read_bytes()
    (folder / "noise.mp4").write_bytes(good)
    (folder / "missing.mp4").write_bytes(good)
    try:
        retried = extract(replace(config, retry_quarantined=True, on_existing="resume"))
    finally:
        (folder / "noise.mp4").write_bytes(broken)
        (folder / "missing.mp4").unlink()
    assert (retried["inputs"], retried["committed"]) == (summary["inputs"], summary["committed"] + 2)
    after = _rows(config.out)
    changed = {name for name, row in after.items() if row["status"] != before[name]["status"]}
    assert changed == {"noise.mp4", "missing.mp4"}
    # What was committed is taken over with the timings of its first and only decoding; the others failed as before.
    for name in before.keys() - changed:
        row = after[name]
        untimed = row if row["status"] == "committed" else row | {timing: before[name][timing] for timing in TIMINGS}
        assert untimed == before[name]


def test_a_decoder_that_crashes_or_hangs_costs_its_own_input_alone(config, ray_cluster, tmp_path):
    good = write_video(tmp_path / "good.mp4", shot_lengths=(400,), size=(640, 480))
    for name in ("crash.mp4", "hang.mp4"):
        shutil.copy(good, tmp_path / name)
    config = replace(config, videos=str(tmp_path / "*.mp4"), out=str(tmp_path / "out"), videos_per_task=3)
    with _signalling(
        Path(config.out, "strikes"), {"crash.mp4": signal.SIGSEGV, "hang.mp4": signal.SIGSTOP}
    ) as signalled:
        summary = extract(config)
    assert {name: len(set(children)) for name, children in signalled.items()} == {"crash.mp4": 3, "hang.mp4": 3}
    assert (summary["committed"], summary["quarantined"]) == (1, 2)
    rows = _rows(config.out)
    assert {name: row["error_class"] for name, row in rows.items()} == {
        "crash.mp4": "DecoderCrashed",
        "good.mp4": None,
        "hang.mp4": "DecoderStalled",
    }
    assert "SIGSEGV (3 attempts)" in rows["crash.mp4"]["message"]
    assert "no sign of life for 3 s" in rows["hang.mp4"]["message"]


@contextmanager
def _signalling(strikes: Path, signal_of: dict[str, signal.Signals]) -> Iterator[dict[str, list[int]]]:
    """Sends a signal to every decoding process that has one of these files open; tells which processes that were."""
    finished = threading.Event()
    signalled: dict[str, list[int]] = {name: [] for name in signal_of}

    def watch() -> None:
        while not finished.wait(0.005):
            # Notes, processes and what they have open may be gone the next moment.
            with suppress(FileNotFoundError, ProcessLookupError):
                for child in _decoding(strikes):
                    for name in signal_of.keys() & _open_files(child):
                        if child not in signalled[name]:
                            signalled[name].append(child)
                            os.kill(child, signal_of[name])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield signalled
    finally:
        finished.set()
        watcher.join()


def _decoding(strikes: Path) -> Iterator[int]:
    """The children of all who are trying to decode an input just now."""
    for note in strikes.glob("*.decode"):
        for line in note.read_text().splitlines():
            for task in Path(f"/proc/{line.split()[1]}/task").iterdir():
                yield from map(int, (task / "children").read_text().split())


def _open_files(process: int) -> set[str]:
    return {Path(os.readlink(link)).name for link in Path(f"/proc/{process}/fd").iterdir()}
