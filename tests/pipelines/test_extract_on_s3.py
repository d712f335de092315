"""Extraction from and to a server that speaks S3, and what becomes of it where storage fails, here or on a disk."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch

from linvt.extraction.config import ExtractConfig
from linvt.extraction.rows import STAGE_SECONDS
from linvt.shards import read_cache
from linvt.shards.storage import Storage, open_storage
from linvt.storage_error import StorageError
from pipelines.extract import extract
from tests.media import write_image, write_video
from tests.s3_server import FAULTS, S3Server

pytestmark = pytest.mark.ray
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(s3, tmp_path_factory):
    """A bucket with six good inputs, a broken one, and a list that also names one that is not there."""
    root = tmp_path_factory.mktemp("corpus")
    for i in range(5):
        write_video(root / f"clips/{i}.mp4", shot_lengths=(9 + i, 14), seed=i)
    write_image(root / "still.png")
    (root / "clips/broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8)
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*.*"))]
    (root / "list.txt").write_text("\n".join([*names, "clips/gone.mp4"]))
    bucket = s3.make_bucket()
    s3.client().put(f"{root}/", bucket, recursive=True)
    return bucket


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A disk of 64 kB, and a function that makes it larger; a folder and None for who may not mount one."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        yield folder, None
        return
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
    subprocess.run(["umount", folder], check=True)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """The same inputs extracted to a local folder: what all others must equal."""

    config: ExtractConfig
    error: str | None
    """Of a first run, that found the disk full."""
    half_written: list[str]
    """What that run left of shards without a record, or under temporary names."""


@pytest.fixture(scope="module")
def on_disk(inputs, tiny_llava, ray_cluster, small_disk):
    folder, enlarge = small_disk
    config = ExtractConfig(
        videos=f"s3://{inputs}/list.txt",
        backbone=tiny_llava,
        out=f"{folder}/out",
        detector="none",
        encode_dtype="float32",
        num_frames=6,
        samples_per_shard=3,
        encode_batch_size=4,
        max_candidates=32,
        num_decode_workers=1,
        num_encode_workers=1,
        videos_per_task=1,
    )
    error, half_written = None, []
    if enlarge is not None:
        with pytest.raises(StorageError) as raised:
            extract(config)
        error = str(raised.value)
        tars = {path.stem for path in folder.rglob("shards/*.tar")}
        half_written = [*map(str, folder.rglob("*.tmp"))]
        half_written += [str(path) for path in folder.rglob("shards/*.json") if path.stem not in tars]
        enlarge()
    summary = extract(replace(config, on_existing="resume"))
    assert (summary["inputs"], summary["committed"], summary["quarantined"], summary["shards"]) == (8, 6, 2, 3)
    return OnDisk(config, error, half_written)


@pytest.fixture
def config(on_disk, s3):
    """For the same extraction to a bucket of the test's own."""
    yield replace(on_disk.config, out=f"s3://{s3.make_bucket()}/out")
    s3.inject_faults(every=0)
    s3.require_credentials(False)
    s3.show()


def _bucket(config: ExtractConfig) -> str:
    return config.out.split("/")[2]


def _cache_files(storage: Storage) -> dict[str, bytes]:
    names = [*(f"shards/{name}" for name in storage.names("shards")), "index.parquet"]
    return {name: storage.read(name) for name in names}


def _assert_same(out: str, on_disk: OnDisk) -> None:
    """Shards and index to the byte, rows but for their timings; and nothing else is left at `out`."""
    storage, expected = open_storage(out), open_storage(on_disk.config.out)
    assert _cache_files(storage) == _cache_files(expected)
    before, after = (
        pq.read_table(place.root + "/videos.parquet", filesystem=place.filesystem) for place in (expected, storage)
    )
    timings = list(STAGE_SECONDS.values())
    assert after.drop_columns(timings).equals(before.drop_columns(timings))
    assert storage.names("spool") == storage.names("strikes") == []
    found = {path.removeprefix(f"{storage.root}/") for path in storage.filesystem.find(storage.root)}
    assert {name.split("/")[0] for name in found} - {"extraction.lock"} == {
        "extraction.json",
        "index.parquet",
        "plan.parquet",
        "report.html",
        "rows",
        "shards",
        "videos.parquet",
    }
    assert not [name for name in found if name.endswith(".tmp")]


def _job(config: ExtractConfig, *flags: str) -> list[str]:
    names = (
        "videos",
        "backbone",
        "out",
        "detector",
        "encode_dtype",
        "num_frames",
        "samples_per_shard",
        "encode_batch_size",
    )
    names += ("max_candidates", "num_decode_workers", "num_encode_workers", "videos_per_task")
    arguments = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    return [sys.executable, str(REPOSITORY / "jobs/extract_features.py"), *arguments, *flags]


def _failed_job(config: ExtractConfig, environment: dict[str, str] | None = None) -> str:
    """The error of a job that must fail, which it tells in one line."""
    done = subprocess.run(
        _job(config, "--on-existing", "resume"),
        env=os.environ | {"RAY_ADDRESS": "local"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert done.stderr.splitlines()[-1] == f"error: {outcome['error']}"
    assert outcome["error_class"] == "StorageError"
    assert "Traceback" not in done.stderr
    return outcome["error"]


def test_a_full_disk_fails_the_run_and_a_larger_one_lets_it_finish(on_disk):
    """The fixture's second run finished it; the tests below compare what came of that."""
    if on_disk.error is None:
        pytest.skip("no right to mount a small disk")
    no_room = r"cannot be written: no room left \(.*No space left on device\); make room, then .* --on-existing resume$"
    assert re.match(rf"{on_disk.config.out}/\S+: {no_room}", on_disk.error)
    assert on_disk.half_written == []
    _assert_same(on_disk.config.out, on_disk)


def test_the_cache_is_the_same_as_on_a_disk_and_reads_back_equal(config, on_disk, s3, inputs):
    """Though one request in nine fails."""
    s3.inject_faults(every=9)
    s3.forget_requests()
    extract(config)
    requests, faults = s3.requests(), s3.faults()
    s3.inject_faults(every=0)
    assert len(faults) > 10
    assert set(faults) == set(FAULTS)
    _assert_same(config.out, on_disk)
    here, there = read_cache(on_disk.config.out), read_cache(config.out)
    assert all(torch.equal(here.get(key).tokens, there.get(key).tokens) for key in here.keys)
    rows = pq.read_table(
        Path(on_disk.config.out, "videos.parquet"), columns=["video_id", "uri", "error_class"]
    ).to_pylist()
    errors = {row["video_id"]: row["error_class"] for row in rows if row["error_class"]}
    assert errors == {"clips/broken.mp4": "InvalidDataError", "clips/gone.mp4": "FileNotFoundError"}
    assert {row["uri"] for row in rows} == {f"s3://{inputs}/{row['video_id']}" for row in rows}

    # What an input costs. Of the eight, six have frames to encode and a payload to read.
    places = (re.match(r"(\w+) /\w+/out/(spool|strikes)/", request) for request in requests)
    assert Counter(place.groups() for place in places if place) == {
        ("PUT", "spool"): 8,
        ("GET", "spool"): 8 + 6,
        ("DELETE", "spool"): 8,
        ("PUT", "strikes"): 8 + 6,
        ("GET", "strikes"): 8 + 6,
        ("DELETE", "strikes"): 8 + 8,
    }


def test_killed_and_then_bereft_of_each_bucket_it_resumes_to_the_same_bytes(config, on_disk, s3, inputs):
    resumed = replace(config, on_existing="resume")
    out = _bucket(config)
    _kill_job(config, s3)
    assert open_storage(config.out).size_bytes("index.parquet") is None

    # Of the inputs' bucket, while one is fetched, and of the cache's, while a shard is assembled.
    no_bucket = "there is no such bucket; create it or correct the name, then .* --on-existing resume$"
    s3.hide(inputs, at=rf"GET /{inputs}/still.png")
    with pytest.raises(StorageError, match=rf"^s3://{inputs}/still\.png: cannot be read: {no_bucket}"):
        extract(resumed)
    s3.show()
    s3.hide(out, at=rf"PUT /{out}/out/shards/000002.tar")
    with pytest.raises(StorageError, match=rf"^s3://{out}/out/\S+: cannot be \w+: {no_bucket}"):
        extract(resumed)
    s3.show()
    assert "000002.json" not in open_storage(config.out).names("shards")

    extract(resumed)
    _assert_same(config.out, on_disk)


def _kill_job(config: ExtractConfig, s3: S3Server) -> None:
    """Starts a job and kills its driver when the first input is spooled."""
    s3.forget_requests()
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(_job(config), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        while not any(f"PUT /{_bucket(config)}/out/spool/" in request for request in s3.requests()):
            try:
                job.wait(timeout=0.05)
                pytest.fail(f"the job ended before it could be killed: {job.communicate()[1].decode()}")
            except subprocess.TimeoutExpired:
                continue
        job.kill()
        job.communicate()


def test_a_job_without_the_right_to_write_says_so_and_leaves_nothing(config, s3):
    reader = s3.user("s3:GetObject", "s3:ListBucket")
    s3.require_credentials(True)
    error = _failed_job(config, reader)
    s3.require_credentials(False)
    assert error.startswith(f"{config.out}/extraction.lock: cannot be written: permission denied (")
    assert s3.client().find(_bucket(config)) == []
