import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch

from linvt.backbones import load_backbone
from linvt.extraction.config import ExtractConfig
from linvt.extraction.identity import read_extraction
from linvt.extraction.lock import exclusive
from linvt.shards import read_cache
from linvt.shards.storage import open_storage
from linvt.shots import load_detector
from linvt.video import decode_video
from pipelines.extract import _place_workers, extract
from tests.media import write_image, write_video

pytestmark = pytest.mark.ray
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Seven good inputs in folders, and two that no decoder takes."""
    root = tmp_path_factory.mktemp("corpus")
    for i in range(5):
        write_video(root / f"clips/{i}.mp4", shot_lengths=(9 + i, 14), seed=i)
    write_video(root / "long.mkv", shot_lengths=(30, 30, 5, 40), size=(64, 96), seed=9)
    write_image(root / "still.png")
    (root / "clips/broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8)
    (root / "empty.mp4").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def base_config(corpus, tiny_llava):
    return ExtractConfig(
        videos=str(corpus),
        backbone=tiny_llava,
        out="",
        num_frames=6,
        samples_per_shard=4,
        encode_batch_size=4,
        max_candidates=32,
        num_decode_workers=1,
        num_encode_workers=1,
    )


@pytest.fixture(scope="module")
def extracted(base_config, ray_cluster, tmp_path_factory):
    config = replace(base_config, out=str(tmp_path_factory.mktemp("extracted") / "out"))
    return config, extract(config)


def _shard_files(out: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(out, "shards").iterdir())}


def _rows(out: str | Path) -> dict[str, dict]:
    return {row["video_id"]: row for row in pq.read_table(Path(out, "videos.parquet")).to_pylist()}


def test_every_input_is_committed_or_quarantined_with_a_reason(extracted):
    config, summary = extracted
    assert set(summary) == {"inputs", "committed", "quarantined", "shards", "bytes", "seconds"}
    assert (summary["inputs"], summary["committed"], summary["quarantined"], summary["shards"]) == (9, 7, 2, 3)
    assert summary["bytes"] == sum(path.stat().st_size for path in Path(config.out).glob("shards/*.tar"))
    rows = _rows(config.out)
    assert sorted(rows) == sorted(
        ["clips/broken.mp4", "empty.mp4", "long.mkv", "still.png", *(f"clips/{i}.mp4" for i in range(5))]
    )
    bad = {name: row for name, row in rows.items() if row["status"] == "quarantined"}
    assert set(bad) == {"clips/broken.mp4", "empty.mp4"}
    assert bad["empty.mp4"]["error_class"] == "EmptyFile"
    assert all(row["stage"] and row["message"] and row["key"] is None for row in bad.values())
    assert list(Path(config.out, "spool").iterdir()) == []


def _exported(metric: str) -> dict[str, tuple[str, float]]:
    """What Ray's exporter tells of a counter: labels to (stage and status, value)."""
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    # Without the proxies that this machine may have set up.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=60) as answer:
        lines = re.findall(rf"^ray_{metric}_total{{(.*)}} (\S+)$", answer.read().decode(), re.MULTILINE)
    return {
        labels: (" ".join(re.findall(r'(?:stage|status)="(\w+)"', labels)), float(value)) for labels, value in lines
    }


def test_what_workers_did_is_exported_to_prometheus(extracted, tmp_path):
    write_video(tmp_path / "corpus/a.mp4", shot_lengths=(8, 9))
    write_image(tmp_path / "corpus/b.png")
    (tmp_path / "corpus/c.mp4").write_bytes(b"")
    config = replace(extracted[0], videos=str(tmp_path / "corpus"), out=str(tmp_path / "out"), detector="none")
    expected = {
        "linvt_extract_inputs": {
            "decode committed": 2,
            "decode quarantined": 1,
            "encode committed": 2,
            "encode quarantined": 1,
        },
        "linvt_extract_frames": {"decode": 18, "encode": 7},
    }
    before = {metric: _exported(metric) for metric in expected}
    extract(config)
    # The exporter hears from workers when it is told, also from those that have ended.
    deadline, counted = time.monotonic() + 60, {}
    while counted != expected:
        assert time.monotonic() < deadline, f"exported: {counted}"
        counted = {metric: Counter() for metric in expected}
        for metric in expected:
            for labels, (what, value) in _exported(metric).items():
                if labels not in before[metric]:
                    counted[metric][what] += value


def test_the_cache_holds_what_the_parts_give_one_by_one(extracted, corpus):
    """The same numbers as decoding, choosing and encoding without Ray, spool or shards."""
    config, _ = extracted
    rows, cache = _rows(config.out), read_cache(config.out)
    torch.set_num_threads(config.threads_per_worker)
    backbone = load_backbone(config.backbone, parts={"vision"})
    detector = load_detector(config.detector, dtype=read_extraction(open_storage(config.out)).detector_dtype)
    assert sorted(cache.video_ids) == sorted(name for name, row in rows.items() if row["status"] == "committed")
    for video in cache:
        row = rows[video.video_id]
        decoded = decode_video(
            corpus / video.video_id, max_side=backbone.max_frame_side, max_candidates=config.max_candidates
        )
        frames, indices = decoded.pool.get(row["kept_frames"])
        assert indices.tolist() == row["kept_frames"]
        assert len(indices) == min(config.num_frames, decoded.info.num_frames)
        expected = backbone.encode_frames(frames, batch_size=config.encode_batch_size)
        assert torch.equal(video.tokens, expected.tokens.bfloat16())
        assert (video.grid, video.kind, video.feature_id) == (expected.grid, decoded.info.kind, cache.feature_id)
        np.testing.assert_array_equal(video.timestamps_s, decoded.timestamps_s[indices])
        if decoded.info.num_frames > 1:
            np.testing.assert_array_equal(row["boundary_probabilities"], detector.predict(decoded.detector_frames))
        starts_s, ends_s = video.shots[video.shot_index].T
        assert (starts_s <= video.timestamps_s).all()
        assert (video.timestamps_s < np.append(video.shots[1:, 0], np.inf)[video.shot_index]).all()
        assert (starts_s < ends_s).all() or video.kind == "image"
    assert cache.hidden_size == backbone.hidden_size


def test_hard_cuts_part_the_shots(extracted):
    cache = read_cache(extracted[0].out)
    video = cache.get(cache.video_ids["long.mkv"])
    np.testing.assert_allclose(video.shots[:, 0], np.array([0, 30, 60]) / 12, atol=1.01 / 12)
    assert set(video.shot_index) == {0, 1, 2}


def test_shards_are_byte_identical_whatever_the_workers_tasks_and_listing_order(extracted, corpus, tmp_path):
    config, _ = extracted
    files = sorted(str(path.relative_to(corpus)) for path in corpus.rglob("*") if path.is_file())
    (tmp_path / "list.txt").write_text("\n".join(reversed(files)))
    again = replace(
        config,
        videos=str(tmp_path / "list.txt"),
        media_root=str(corpus),
        out=str(tmp_path / "out"),
        num_decode_workers=2,
        num_encode_workers=2,
        videos_per_task=1,
    )
    extract(again)
    assert _shard_files(again.out) == _shard_files(config.out)
    assert filecmp.cmp(f"{again.out}/index.parquet", f"{config.out}/index.parquet", shallow=False)


def test_a_finished_extraction_runs_no_stage_again(extracted, tmp_path, monkeypatch):
    config = replace(extracted[0], out=str(tmp_path / "out"), on_existing="resume")
    shutil.copytree(extracted[0].out, config.out)
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("shards/*")}
    monkeypatch.setattr("pipelines.extract._run_stages", lambda *_: pytest.fail("a stage was run"))
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    summary = extract(config)
    assert summary | {"seconds": 0} == extracted[1] | {"seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("shards/*")} == before


def test_an_existing_extraction_is_not_touched_unless_asked(extracted):
    with pytest.raises(ValueError, match="--on-existing resume"):
        extract(extracted[0])


def test_another_configuration_is_refused_by_its_fields(extracted):
    config = extracted[0]
    before = _shard_files(config.out)
    changed = replace(config, on_existing="resume", num_frames=7, cache_dtype="int8")
    with pytest.raises(ValueError, match=r"cache_dtype \(there: 'bf16', asked: 'int8'\)") as raised:
        extract(changed)
    assert "num_frames (there: 6, asked: 7)" in str(raised.value)
    assert str(raised.value).count("there:") == 2
    assert _shard_files(config.out) == before


def test_a_grown_and_damaged_cache_is_completed_and_nothing_committed_moves(extracted, corpus, tmp_path):
    config = replace(extracted[0], videos=str(tmp_path / "corpus"), out=str(tmp_path / "out"), on_existing="resume")
    shutil.copytree(corpus, config.videos)
    shutil.copytree(extracted[0].out, config.out)
    old = _shard_files(config.out)
    tar = Path(config.out, "shards/000001.tar")
    tar.write_bytes(tar.read_bytes()[:2000])
    # Sorted by id they would come first and in the middle.
    write_video(tmp_path / "corpus/a.mp4", seed=21)
    write_video(tmp_path / "corpus/clips/2b.mp4", seed=22)
    summary = extract(config)
    assert (summary["inputs"], summary["committed"], summary["quarantined"], summary["shards"]) == (11, 9, 2, 4)
    new = _shard_files(config.out)
    # The damaged shard is made again from the moved corpus: its uris are the only bytes that may differ.
    kept = [name for name in old if not name.startswith("000001")]
    assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
    before, now = read_cache(extracted[0].out), read_cache(config.out)
    assert [list(now.keys[: len(before)]), len(now)] == [list(before.keys), 9]
    assert all(torch.equal(before.get(key).tokens, now.get(key).tokens) for key in before.keys)
    record = json.loads(new["000003.json"])
    assert (record["generation"], record["tombstones"]) == (1, [])
    assert sorted((sample["slot"], sample["video_id"]) for sample in record["samples"]) == [
        (12, "a.mp4"),
        (13, "clips/2b.mp4"),
    ]
    assert len(_rows(config.out)) == 11


def test_a_replaced_file_is_extracted_again_and_nothing_else(extracted, corpus, tmp_path):
    config = replace(extracted[0], videos=str(tmp_path / "corpus"), out=str(tmp_path / "out"), on_existing="resume")
    shutil.copytree(corpus, config.videos)
    shutil.copytree(extracted[0].out, config.out)
    write_video(tmp_path / "corpus/clips/3.mp4", seed=77)
    write_video(tmp_path / "corpus/empty.mp4", seed=78)
    summary = extract(config)
    assert (summary["inputs"], summary["committed"], summary["quarantined"]) == (9, 8, 1)
    old, new = read_cache(extracted[0].out), read_cache(config.out)
    assert {name for name in new.video_ids if old.video_ids.get(name) != new.video_ids[name]} == {
        "clips/3.mp4",
        "empty.mp4",
    }
    # What was taken over was not decoded again: its row still has the timings of the first time.
    before, after = _rows(extracted[0].out), _rows(config.out)
    assert {name for name in after if after[name]["decode_s"] != before[name]["decode_s"]} == {
        "clips/3.mp4",
        "empty.mp4",
    }
    for key in set(old.keys) & set(new.keys):
        assert torch.equal(old.get(key).tokens, new.get(key).tokens)


def test_overwriting_starts_anew_with_other_settings(extracted, tmp_path):
    config = replace(extracted[0], out=str(tmp_path / "out"), on_existing="overwrite", cache_dtype="int8")
    shutil.copytree(extracted[0].out, config.out)
    summary = extract(config)
    assert (summary["inputs"], summary["committed"]) == (9, 7)
    assert summary["bytes"] < extracted[1]["bytes"]
    old, new = read_cache(extracted[0].out), read_cache(config.out)
    assert old.feature_id != new.feature_id
    assert old.keys == new.keys
    for key in old.keys:
        exact, rounded = old.get(key).tokens.float(), new.get(key).tokens.float()
        assert ((exact - rounded).abs() <= exact.abs().amax(-1, keepdim=True) / 127).all()


def test_a_compiled_encoder_gives_the_same_tokens_but_for_rounding(extracted, tmp_path):
    config = replace(extracted[0], out=str(tmp_path / "out"), compile_encoder=True, cache_dtype="bf16")
    extract(config)
    plain, compiled = read_cache(extracted[0].out), read_cache(config.out)
    assert compiled.keys == plain.keys
    for key in plain.keys:
        torch.testing.assert_close(compiled.get(key).tokens, plain.get(key).tokens, rtol=2**-7, atol=1e-4)
    with pytest.raises(ValueError, match=r"compile_encoder \(there: True, asked: False\)"):
        extract(replace(config, compile_encoder=False, on_existing="resume"))


def test_limit_max_errors_strict_and_retrying_the_quarantined(base_config, corpus, ray_cluster, tmp_path):
    config = replace(base_config, videos=str(tmp_path / "corpus"), out=str(tmp_path / "out"), on_existing="resume")
    shutil.copytree(corpus, config.videos)
    assert extract(replace(config, limit=2))["inputs"] == 2
    # Kept, with all that its traceback refers to: the next runs must get the workers' CPUs all the same.
    with pytest.raises(RuntimeError, match=r"2 inputs were quarantined in this run, more than --max-errors 1") as kept:
        extract(replace(config, videos_per_task=1, max_errors=1, retry_quarantined=True))
    with pytest.raises(RuntimeError, match=r"2 of 9 inputs are quarantined, and --strict allows none"):
        extract(replace(config, strict=True))
    assert kept.traceback
    # The good ones are committed all the same.
    cache = read_cache(config.out)
    assert len(cache) == 7
    decoded_at = {name: row["decode_s"] for name, row in _rows(config.out).items()}
    # Repaired without a trace in size and modification time, as a storage that was down would be.
    broken = Path(config.videos, "clips/broken.mp4")
    times = broken.stat()
    content = bytearray(Path(config.videos, "clips/0.mp4").read_bytes())
    content += b"\0" * (times.st_size - len(content))
    summary = extract(replace(config, retry_quarantined=True))
    assert (summary["committed"], summary["quarantined"]) == (7, 2)
    broken.write_bytes(content)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    summary = extract(replace(config, retry_quarantined=True))
    assert (summary["committed"], summary["quarantined"]) == (8, 1)
    assert {name for name, row in _rows(config.out).items() if row["decode_s"] != decoded_at[name]} == {
        "clips/broken.mp4"
    }


def test_a_second_extraction_on_one_out_is_refused(extracted):
    config = replace(extracted[0], on_existing="resume")
    with exclusive(open_storage(config.out)), pytest.raises(ValueError, match="is in use by process"):
        extract(config)


def test_inputs_that_are_missing_or_kill_their_decoder_are_quarantined(base_config, ray_cluster, tmp_path):
    """A decoder is killed whenever it works on one video; the third death is that video's last."""
    write_video(tmp_path / "deadly.mp4", shot_lengths=(400,), size=(640, 480))
    (tmp_path / "list.txt").write_text("gone.mp4\n.\ndeadly.mp4\n")
    config = replace(base_config, videos=str(tmp_path / "list.txt"), out=str(tmp_path / "out"), videos_per_task=1)
    # Slots follow the sorted ids: ".", "deadly.mp4", "gone.mp4".
    strikes, finished = Path(config.out, "strikes/000000000001.decode"), threading.Event()
    killed: list[int] = []

    def kill_decoders() -> None:
        while not finished.wait(0.005):
            processes = [int(line.split()[1]) for line in strikes.read_text().splitlines()] if strikes.exists() else []
            if len(processes) > len(killed):
                killed.append(processes[-1])
                os.kill(processes[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill_decoders)
    killer.start()
    try:
        summary = extract(config)
    finally:
        finished.set()
        killer.join()
    assert len(set(killed)) == 3
    assert (summary["inputs"], summary["committed"], summary["quarantined"]) == (3, 0, 3)
    assert {name: row["error_class"] for name, row in _rows(config.out).items()} == {
        "gone.mp4": "FileNotFoundError",
        ".": "IsADirectoryError",
        "deadly.mp4": "WorkerDied",
    }
    with pytest.raises(ValueError, match="no sample was committed"):
        read_cache(config.out)


def _job(config: ExtractConfig, *flags: str) -> list[str]:
    settings = {"videos": config.videos, "backbone": config.backbone, "out": config.out}
    settings |= {"num-frames": config.num_frames, "samples-per-shard": config.samples_per_shard}
    settings |= {"encode-batch-size": config.encode_batch_size, "max-candidates": config.max_candidates}
    settings |= {"num-decode-workers": 1, "num-encode-workers": 1}
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(REPOSITORY / "jobs/extract_features.py"), *arguments, *flags]


@pytest.mark.parametrize("target", ["driver", "worker", "raylet"])
def test_a_killed_job_resumes_to_the_same_bytes(extracted, tmp_path, target):
    """SIGKILL for one of a job's processes while it works; benchmarks/kill_extraction.py does it at many moments."""
    config = replace(extracted[0], out=str(tmp_path / "out"))
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with subprocess.Popen(
        _job(config, "--videos-per-task", "1"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        while not list(Path(config.out).glob("spool/*.arrow")) and not list(Path(config.out).glob("shards/*.json")):
            try:
                job.wait(timeout=0.02)
                pytest.fail(f"the job ended before it could be killed: {job.communicate()[1]}")
            except subprocess.TimeoutExpired:
                continue
        _process_of(job.pid, target).kill()
        if target == "driver":
            assert not Path(config.out, "index.parquet").exists()
        output, errors = job.communicate()
    if target == "worker":
        assert job.returncode == 0, errors
    if job.returncode:
        resumed = subprocess.run(
            _job(config, "--on-existing", "resume"), env=environment, capture_output=True, text=True, timeout=300
        )
        assert resumed.returncode == 0, resumed.stderr
        output = resumed.stdout
    summary = json.loads(output.splitlines()[-1])
    assert (summary["inputs"], summary["committed"], summary["quarantined"], summary["shards"]) == (9, 7, 2, 3)
    assert _shard_files(config.out) == _shard_files(extracted[0].out)
    assert list(Path(config.out, "spool").iterdir()) == []


def _process_of(driver: int, target: str) -> psutil.Process:
    """The driver itself, its raylet, or one of the actors that decode and encode."""
    process = psutil.Process(driver)
    if target == "driver":
        return process
    named = {" ".join(child.cmdline()[:1]) + child.name(): child for child in process.children(recursive=True)}
    wanted = "raylet" if target == "raylet" else "MapWorker"
    return next(child for name, child in named.items() if wanted in name)


def test_the_job_fails_with_one_json_line_and_says_why(tiny_llava, tmp_path):
    job = [sys.executable, str(REPOSITORY / "jobs/extract_features.py"), "--backbone", tiny_llava]
    failed = subprocess.run(
        [*job, "--videos", str(tmp_path), "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert failed.returncode == 1
    assert "no media found" in json.loads(failed.stdout.splitlines()[-1])["error"]
    assert not (tmp_path / "out").exists()


def test_help_and_dry_run_import_neither_torch_nor_ray():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['extract_features.py', *sys.argv[1:]]\n"
        f"try: runpy.run_path({str(REPOSITORY / 'jobs/extract_features.py')!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    for flags in (["--help"], ["--videos", "x", "--backbone", "tiny", "--out", "y", "--dry-run"]):
        done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "--num-frames must be at least 1"),
        ({"max_candidates": 5}, r"--max-candidates \(5\) must be at least --num-frames \(6\)"),
        ({"shot_threshold": 1.0}, "--shot-threshold"),
        ({"gpus_per_encode_worker": 1.5}, "--gpus-per-encode-worker must be above 0 and at most 1"),
    ],
)
def test_impossible_settings_are_refused(base_config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(base_config, **changes)


@pytest.mark.parametrize(
    ("asked", "resources", "placed"),
    [
        ({}, {"CPU": 2}, (2, 1, 0.66, 0)),
        ({}, {"CPU": 16, "GPU": 2}, (14, 2, 1, 1)),
        ({"num_encode_workers": 4}, {"CPU": 16, "GPU": 2}, (14, 4, 0.88, 0.5)),
        ({"gpus_per_encode_worker": 0.25}, {"CPU": 16, "GPU": 2}, (14, 8, 0.72, 0.25)),
        ({"gpus_per_encode_worker": 0.25, "num_encode_workers": 1}, {"CPU": 4, "GPU": 1}, (3, 1, 1, 0.25)),
    ],
)
def test_workers_never_claim_more_than_there_is(base_config, asked, resources, placed):
    config = replace(base_config, **{"num_decode_workers": None, "num_encode_workers": None} | asked)
    placement = _place_workers(config, resources, num_tasks=1000)
    assert (
        placement.num_decoders,
        placement.num_encoders,
        placement.cpus_per_worker,
        placement.gpus_per_encoder,
    ) == placed


def test_encoders_that_do_not_fit_are_refused(base_config):
    config = replace(base_config, gpus_per_encode_worker=0.5, num_encode_workers=5)
    with pytest.raises(ValueError, match=r"5 encoders with 0\.5 of a GPU each do not fit on this cluster's 2 GPUs"):
        _place_workers(config, {"CPU": 16, "GPU": 2}, num_tasks=1000)


def test_an_unknown_detector_is_refused_before_anything_is_written(base_config, ray_cluster, tmp_path):
    with pytest.raises(ValueError, match=r"detector.*nonesuch"):
        extract(replace(base_config, out=str(tmp_path / "out"), detector="nonesuch"))
    assert not (tmp_path / "out").exists()
