"""The files of a cache on a server that speaks S3."""

import os
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import webdataset
from s3fs import S3FileSystem

from linvt.shards import read_cache
from linvt.shards.commit import CommitRecord, ShardError, commit_shard, read_record
from linvt.shards.storage import Storage, open_storage
from linvt.storage_error import StorageError
from tests.s3_server import FAULTS
from tests.shards.cache_builder import pending_sample, save_cache, write_one_shard

# s3fs sends what is larger in parts.
LARGEST_SINGLE_PUT_BYTES = 100 << 20


@pytest.fixture
def bucket(s3):
    """A bucket of the test's own; the server is as good as new afterwards."""
    yield s3.make_bucket()
    s3.inject_faults(every=0)
    s3.ignore_conditions(False)
    s3.require_credentials(False)
    s3.refuse("")
    s3.show()


@pytest.fixture
def storage(bucket):
    return open_storage(f"s3://{bucket}/out")


def _tokens(count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"{i}.mp4": torch.randn(2 + i, 3, 8, generator=generator) for i in range(count)}


def test_a_cache_is_the_same_bytes_as_on_a_disk_and_reads_back_equal(storage, tmp_path):
    save_cache(tmp_path, _tokens())
    save_cache(storage.uri, _tokens())
    local = open_storage(str(tmp_path))
    names = [*(f"shards/{name}" for name in local.names("shards")), "index.parquet"]
    assert storage.names("shards") == local.names("shards")
    assert {name: storage.read(name) for name in names} == {name: local.read(name) for name in names}
    here, there = read_cache(str(tmp_path)), read_cache(storage.uri)
    there.verify()
    assert here.keys == there.keys
    assert all(torch.equal(here.get(key).tokens, there.get(key).tokens) for key in here.keys)


def test_plain_webdataset_iterates_the_tars_through_a_pipe(storage):
    save_cache(storage.uri, _tokens())
    copy = "import fsspec, shutil, sys; shutil.copyfileobj(fsspec.open(sys.argv[1]).open(), sys.stdout.buffer)"
    pipes = [f"pipe:{sys.executable} -c '{copy}' {storage.uri}/shards/{shard:06d}.tar" for shard in range(2)]
    samples = list(webdataset.WebDataset(pipes, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(read_cache(storage.uri).keys)


def test_what_others_write_and_remove_is_seen_at_once(storage, s3, bucket):
    """s3fs would go on telling what it listed first."""
    other, path = s3.client(), f"{bucket}/out/shards/000000.tar"
    storage.write("shards/000000.tar", b"12")
    assert storage.names("shards") == ["000000.tar"]
    other.pipe_file(path, b"12345")
    assert storage.size_bytes("shards/000000.tar") == 5
    with storage.open("shards/000000.tar") as file:
        assert file.read() == b"12345"
    other.pipe_file(f"{bucket}/out/shards/000001.tar", b"1")
    assert storage.names("shards") == ["000000.tar", "000001.tar"]
    other.rm_file(path)
    assert storage.size_bytes("shards/000000.tar") is None
    with pytest.raises(FileNotFoundError):
        storage.read("shards/000000.tar")


def test_a_record_is_never_overwritten_by_another(storage, monkeypatch):
    """Also where the other record comes between the look and the put."""
    samples = [pending_sample(name, tokens, slot=i) for i, (name, tokens) in enumerate(_tokens().items())]
    record = write_one_shard(storage, 0, samples)
    commit_shard(storage, record)
    other = CommitRecord.from_json(record.to_json().replace(b"cpu AVX2", b"cpu other"))
    with pytest.raises(ShardError, match=r"s3://.*/out/shards/000000\.json: committed by somebody else"):
        commit_shard(storage, other)
    assert read_record(storage, 0) == record

    put_if = Storage._put_if

    def rival_comes_first(self: Storage, name: str, *put: Any) -> None:
        self.write(name, record.to_json())
        put_if(self, name, *put)

    monkeypatch.setattr(Storage, "_put_if", rival_comes_first)
    storage.remove("shards/000000.json")
    with pytest.raises(ShardError, match="committed by somebody else"):
        commit_shard(storage, other)
    assert read_record(storage, 0) == record
    storage.remove("shards/000000.json")
    commit_shard(storage, record)


def test_of_two_that_replace_the_same_contents_one_succeeds(storage, monkeypatch):
    storage.write("lock", b"old")
    assert not storage.replace("lock", b"mine", expected=b"older")
    put_if = Storage._put_if

    def rival_comes_first(self: Storage, name: str, *put: Any) -> None:
        self.write(name, b"rival")
        put_if(self, name, *put)

    monkeypatch.setattr(Storage, "_put_if", rival_comes_first)
    assert not storage.replace("lock", b"mine", expected=b"old")
    assert storage.read("lock") == b"rival"


def test_a_store_that_knows_no_conditional_puts_is_found_out(storage, s3):
    storage.write("lock", b"1")
    assert storage.creates_only_once("lock")
    s3.ignore_conditions(True)
    assert not storage.creates_only_once("lock")
    assert storage.read("lock") == b"1"
    assert not storage.create("lock", b"2")
    assert storage.create("other", b"2")


def _write_large(storage: Storage, name: str, block: bytes) -> None:
    with storage.open_atomic(name) as file:
        for _ in range(LARGEST_SINGLE_PUT_BYTES // len(block) + 2):
            file.write(block)


def test_a_large_tar_goes_up_in_parts_and_one_that_fails_leaves_nothing(storage, s3, bucket):
    block = os.urandom(1 << 20)
    s3.forget_requests()
    _write_large(storage, "shards/000000.tar", block)
    assert sum("partNumber=" in request for request in s3.requests()) == 3
    assert storage.size_bytes("shards/000000.tar") == LARGEST_SINGLE_PUT_BYTES + (2 << 20)
    with storage.open("shards/000000.tar") as file:
        file.seek(-len(block), os.SEEK_END)
        assert file.read() == block

    s3.refuse("PUT .*partNumber=3")
    with pytest.raises(StorageError, match="permission denied"):
        _write_large(storage, "shards/000001.tar", block)
    assert storage.names("shards") == ["000000.tar"]
    assert s3.client().call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads") is None


def test_a_shard_that_fails_half_way_uploads_nothing(storage, s3):
    sample = pending_sample("a.mp4", torch.zeros(1, 1, 1), slot=0)
    last = replace(sample, key="f" * 32, load=lambda: (storage.read("not/there"), b""))
    s3.forget_requests()
    with pytest.raises(FileNotFoundError):
        write_one_shard(storage, 0, [sample, last])
    assert [request for request in s3.requests() if not request.startswith("GET")] == []


def test_errors_resets_and_truncated_answers_are_tried_again(storage, s3):
    contents = {f"{i}": os.urandom(1000 + i) for i in range(3)}
    s3.inject_faults(every=3)
    for name, data in contents.items():
        storage.write(name, data)
        assert storage.read(name) == data
        assert storage.read(name, 10, 500) == data[10:500]
        with storage.open(name) as file:
            assert file.read() == data
    assert set(s3.faults()) == set(FAULTS)


def test_what_a_store_refuses_is_told_with_place_and_advice(storage, s3, bucket):
    asked = {
        "read": lambda: storage.read("extraction.json"),
        "looked up": lambda: storage.size_bytes("extraction.json"),
        "listed": lambda: storage.names("shards"),
        "removed": lambda: storage.remove("extraction.json"),
        "written": lambda: storage.write("extraction.json", b"{}"),
    }
    s3.hide(bucket)
    for what, ask in asked.items():
        message = (
            rf"^s3://{bucket}/out/\S+: cannot be {what}: there is no such bucket; create it .* --on-existing resume$"
        )
        with pytest.raises(StorageError, match=message):
            ask()
    s3.show()
    s3.require_credentials(True)
    for what, ask in asked.items():
        message = rf"^s3://{bucket}/out/\S+: cannot be {what}: permission denied \(.+\); see to the rights .* resume$"
        with pytest.raises(StorageError, match=message):
            ask()


def test_a_store_out_of_reach_is_told(s3, bucket):
    nowhere = S3FileSystem(endpoint_url="http://127.0.0.1:9", config_kwargs={"retries": {"max_attempts": 1}})
    with pytest.raises(StorageError, match=r"EndpointConnectionError: .*; see that the storage is in place"):
        Storage(nowhere, f"{bucket}/out").read("extraction.json")
