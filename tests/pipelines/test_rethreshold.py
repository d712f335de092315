"""Another shot threshold for a finished extraction: what a fresh one gives, with as little decoded as can be."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from linvt.extraction.config import ExtractConfig
from linvt.extraction.rethreshold import forecast
from linvt.extraction.rows import STAGE_SECONDS
from linvt.shards import read_cache
from linvt.shards.storage import Storage
from pipelines.extract import extract
from tests.media import write_image, write_video

pytestmark = pytest.mark.ray
REPOSITORY = Path(__file__).parents[2]

# LOW finds two cuts in long.mkv that OLD does not, and so other frames. HIGH loses the cut of a clip all of whose
# frames are kept anyway.
LOW, OLD, HIGH = 0.5, 0.9, 0.975


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five good inputs, one of them an image, a broken one, and a list of them all and of one that is not there."""
    root = tmp_path_factory.mktemp("corpus")
    for i in range(3):
        write_video(root / f"clips/{i}.mp4", shot_lengths=(9 + i, 14), seed=i)
    write_video(root / "long.mkv", shot_lengths=(30, 30, 5, 40), size=(64, 96), seed=9)
    write_image(root / "still.png")
    (root / "clips/broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    (root / "list.txt").write_text("\n".join([*names, "clips/gone.mp4"]))
    return root


@pytest.fixture(scope="module")
def fresh(corpus, tiny_llava, ray_cluster, tmp_path_factory) -> Callable[[float], ExtractConfig]:
    """A fresh extraction at a threshold."""

    @cache
    def extracted(threshold: float) -> ExtractConfig:
        config = ExtractConfig(
            videos=str(corpus / "list.txt"),
            backbone=tiny_llava,
            out=str(tmp_path_factory.mktemp("fresh") / "out"),
            detector_dtype="float32",
            shot_threshold=threshold,
            num_frames=40,
            samples_per_shard=3,
            encode_batch_size=8,
            max_candidates=64,
            num_decode_workers=1,
            num_encode_workers=1,
        )
        extract(config)
        return config

    return extracted


@pytest.fixture
def finished(fresh, tmp_path) -> ExtractConfig:
    """A copy of an extraction at OLD, to be resumed."""
    shutil.copytree(fresh(OLD).out, tmp_path / "out")
    return replace(fresh(OLD), out=str(tmp_path / "out"), on_existing="resume")


def _files(out: str) -> dict[str, bytes]:
    """All but what holds timings."""
    names = ["extraction.json", "plan.parquet", "index.parquet"]
    return {name: Path(out, name).read_bytes() for name in names if Path(out, name).exists()} | {
        f"shards/{path.name}": path.read_bytes() for path in Path(out, "shards").iterdir()
    }


def _assert_equal(config: ExtractConfig, expected: ExtractConfig) -> None:
    assert _files(config.out) == _files(expected.out)
    rows, expected_rows = (
        pq.read_table(f"{out}/videos.parquet").drop_columns(list(STAGE_SECONDS.values()))
        for out in (config.out, expected.out)
    )
    assert rows.equals(expected_rows)
    assert not list(Path(config.out, "spool").iterdir())


def _column(out: str, name: str) -> dict[str, Any]:
    return {row["video_id"]: row[name] for row in pq.read_table(f"{out}/videos.parquet").to_pylist()}


def _no_stage(monkeypatch) -> None:
    monkeypatch.setattr("pipelines.extract._run_stages", lambda *_: pytest.fail("something was decoded"))


def test_another_threshold_without_the_flag_is_refused_and_the_flag_named(finished):
    before = _files(finished.out)
    with pytest.raises(
        ValueError, match=r"shot_threshold \(there: 0\.9, asked: 0\.5\).* bring it over with --rethreshold"
    ):
        extract(replace(finished, shot_threshold=LOW))
    with pytest.raises(ValueError, match=r"num_frames .*shot_threshold .* choose another --out"):
        extract(replace(finished, shot_threshold=LOW, num_frames=7, rethreshold=True))
    with pytest.raises(ValueError, match="--rethreshold goes with --on-existing resume, got --on-existing fail"):
        replace(finished, rethreshold=True, on_existing="fail")
    assert _files(finished.out) == before


def test_where_frames_stay_nothing_is_decoded(finished, fresh, corpus, tmp_path, monkeypatch):
    """Not even the media need to be there."""
    expected = fresh(HIGH)
    _no_stage(monkeypatch)
    shutil.copy(corpus / "list.txt", tmp_path)
    before = _column(finished.out, "shots")
    extract(replace(finished, videos=str(tmp_path / "list.txt"), shot_threshold=HIGH, rethreshold=True))
    after = _column(finished.out, "shots")
    assert {name for name in after if after[name] != before[name]} == {"clips/0.mp4"}
    _assert_equal(finished, expected)


def test_only_what_keeps_other_frames_is_decoded(finished, fresh):
    old_frames, new_frames = (_column(fresh(threshold).out, "kept_frames") for threshold in (OLD, LOW))
    changed = {name for name in new_frames if new_frames[name] != old_frames[name]}
    assert changed == {"long.mkv"}
    before = _column(finished.out, "decode_s")
    extract(replace(finished, shot_threshold=LOW, rethreshold=True))
    after = _column(finished.out, "decode_s")
    assert {name for name in after if after[name] != before[name]} == changed
    _assert_equal(finished, fresh(LOW))


def test_a_dry_run_tells_how_many_are_decoded_again_and_changes_nothing(finished):
    before = _files(finished.out)
    command = [sys.executable, str(REPOSITORY / "jobs/extract_features.py"), "--dry-run", "--rethreshold"]
    command += ["--on-existing", "resume", "--videos", finished.videos, "--backbone", finished.backbone]
    command += ["--out", finished.out, "--shot-threshold", str(LOW)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])["rethresholding"]
    assert told == {"inputs": 7, "kept": 6, "decoded_again": 1}
    unchanged = forecast(replace(finished, rethreshold=True))
    assert unchanged == {"inputs": 7, "kept": 0, "decoded_again": 0}
    assert _files(finished.out) == before


def test_a_video_that_is_gone_and_would_be_decoded_again_stops_it_before_anything_is_changed(
    finished, corpus, tmp_path
):
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus/long.mkv").unlink()
    before = _files(finished.out)
    with pytest.raises(ValueError, match=r"must be decoded again, but 1 are gone: long\.mkv\. Bring them back"):
        extract(replace(finished, videos=str(tmp_path / "corpus/list.txt"), shot_threshold=LOW, rethreshold=True))
    assert _files(finished.out) == before


class _Killed(BaseException):
    pass


def _kill_at(monkeypatch, number: int) -> Callable[[], bool]:
    """Whatever would change a file fails, from the so-manieth on; the function says whether it came to that."""
    count = 0

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > number:
                raise _Killed
            return change(*args, **kwargs)

        return counted

    for name in ("write", "open_atomic", "remove"):
        monkeypatch.setattr(Storage, name, dying(getattr(Storage, name)))
    return lambda: count > number


def _assert_unmixed(out: str) -> None:
    """Who reads now gets an error, or one whole cache."""
    if not Path(out, "index.parquet").exists():
        with pytest.raises(ValueError, match=r"no index\.parquet"):
            read_cache(out)
        return
    found = read_cache(out)
    found.verify()
    assert {video.feature_id for video in found} == {found.feature_id}


def test_killed_at_any_change_of_a_file_it_goes_on_to_the_same_bytes(finished, fresh, monkeypatch, tmp_path):
    expected = fresh(HIGH)
    _no_stage(monkeypatch)
    config = replace(finished, out=str(tmp_path / "killed"), shot_threshold=HIGH, rethreshold=True)
    number, was_killed = 0, True
    while was_killed:
        shutil.rmtree(config.out, ignore_errors=True)
        shutil.copytree(finished.out, config.out)
        with monkeypatch.context() as patch:
            was_killed_at = _kill_at(patch, number)
            with suppress(_Killed):
                extract(config)
            was_killed = was_killed_at()
        _assert_unmixed(config.out)
        extract(config)
        _assert_equal(config, expected)
        number += 1
    assert number > 30


def test_killed_before_the_decoding_it_goes_on_without_the_flag_or_to_a_third_threshold(
    finished, fresh, monkeypatch, tmp_path
):
    config = replace(finished, shot_threshold=LOW, rethreshold=True)

    def kill(*_: Any) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.extract._run_stages", kill)
        with pytest.raises(_Killed):
            extract(config)
    _assert_unmixed(config.out)
    with pytest.raises(ValueError, match=r"shot_threshold \(there: 0\.5, asked: 0\.9\)"):
        extract(finished)
    for threshold, flag in ((LOW, False), (HIGH, True)):
        copy = replace(config, out=str(tmp_path / str(threshold)), shot_threshold=threshold, rethreshold=flag)
        shutil.copytree(config.out, copy.out)
        extract(copy)
        _assert_equal(copy, fresh(threshold))
