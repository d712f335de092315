import io
import tarfile

import pytest
import torch

from linvt.shards.commit import CommitRecord, ShardError, Tombstone, read_record, verify_shard, write_shard
from linvt.shards.layout import tar_name
from linvt.shards.storage import open_storage
from tests.shards.cache_builder import pending_sample, write_one_shard


def _samples(count: int = 5):
    generator = torch.Generator().manual_seed(0)
    return [pending_sample(f"{i}.mp4", torch.randn(2 + i, 3, 8, generator=generator), slot=i) for i in range(count)]


def test_bytes_do_not_depend_on_the_order_of_samples(tmp_path):
    first, second = open_storage(str(tmp_path / "a")), open_storage(str(tmp_path / "b"))
    records = write_one_shard(first, 0, _samples()), write_one_shard(second, 0, _samples()[::-1])
    assert records[0] == records[1]
    for name in ("shards/000000.tar", "shards/000000.json"):
        assert first.read(name) == second.read(name)


def test_members_are_sorted_anonymous_and_where_the_record_says(tmp_path):
    storage = open_storage(str(tmp_path))
    record = write_one_shard(
        storage, 3, _samples(), (Tombstone(slot=5, video_id="5.mp4", stage="decode", error_class="X"),)
    )
    data = storage.read("shards/000003.tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    places = [(m.offset_data, m.size) for m in members]
    recorded = [(part.offset, part.size_bytes) for sample in record.samples for part in (sample.info, sample.tokens)]
    assert places == recorded
    assert record.tar_size_bytes == len(data)
    assert not any(path.suffix == ".tmp" for path in tmp_path.rglob("*"))


def test_record_comes_back_equal(tmp_path):
    storage = open_storage(str(tmp_path))
    record = write_one_shard(storage, 0, _samples(), (Tombstone(slot=9, video_id="9", stage="s", error_class="E"),))
    assert read_record(storage, 0) == record
    assert read_record(storage, 1) is None


def test_slots_must_add_up(tmp_path):
    with pytest.raises(ValueError, match="2 samples \\+ 0 tombstones, expected 3 slots"):
        write_shard(
            open_storage(str(tmp_path)),
            shard=0,
            generation=0,
            plan_hash="",
            feature_id="",
            devices=[],
            samples=_samples(2),
            tombstones=[],
            num_slots=3,
        )


def test_a_write_that_fails_leaves_nothing(tmp_path):
    storage = open_storage(str(tmp_path))
    samples = _samples()
    broken = pending_sample("z.mp4", torch.zeros(1, 1, 1), slot=9)
    # The payload of the sample that comes last in the tar cannot be read.
    object.__setattr__(broken, "key", "f" * 32)
    object.__setattr__(broken, "load", lambda: storage.read("not/there"))
    with pytest.raises(FileNotFoundError):
        write_one_shard(storage, 0, [*samples, broken])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "missing, though its commit record exists"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), "bytes, its commit record says"),
        (lambda path: path.write_bytes(_flipped(path.read_bytes())), "differ from the sha256"),
    ],
    ids=["missing", "truncated", "altered"],
)
def test_verify_names_a_shard_that_is_not_what_was_committed(tmp_path, damage, message):
    storage = open_storage(str(tmp_path))
    record = write_one_shard(storage, 0, _samples())
    verify_shard(storage, record, contents=True)
    damage(tmp_path / tar_name(0))
    with pytest.raises(ShardError, match=message) as raised:
        verify_shard(storage, record, contents=True)
    assert str(tmp_path / tar_name(0)) in str(raised.value)


def test_a_damaged_record_is_named(tmp_path):
    storage = open_storage(str(tmp_path))
    write_one_shard(storage, 0, _samples())
    path = tmp_path / "shards/000000.json"
    for damaged in (path.read_bytes()[:-20], b"{}", b"[]", path.read_bytes().replace(b'"slot"', b'"slut"')):
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"000000\.json: not a commit record"):
            read_record(storage, 0)


def test_record_of_another_layout_is_refused():
    with pytest.raises(ValueError, match="layout version 99"):
        CommitRecord.from_json(b'{"layout_version": 99}')


def _flipped(data: bytes) -> bytes:
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]
