import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from linvt.extraction.assembly import assemble_shard
from linvt.extraction.existing import (
    clear_leftovers,
    committed_shards,
    existing_extraction,
    finish_extraction,
    refresh_media,
    remove_extraction,
)
from linvt.extraction.fetch import content_sha256
from linvt.extraction.identity import Extraction, FeatureSpec
from linvt.extraction.inputs import list_inputs
from linvt.extraction.plan import grow_plan, make_plan, write_plan
from linvt.extraction.reopening import reopen_shards
from linvt.extraction.rows import VideoRow
from linvt.extraction.spool import spooled_slots, write_spooled
from linvt.extraction.strikes import absolve, struck_out
from linvt.shards import read_cache
from linvt.shards.commit import CommittedShard
from linvt.shards.layout import EXTRACTION, sample_key
from linvt.shards.sample import SampleInfo, tokens_to_bytes
from linvt.shards.storage import open_storage

SPEC = FeatureSpec(
    vision_fingerprint="v",
    max_side=128,
    max_candidates=64,
    cache_dtype="bf16",
    num_frames=8,
    detector="none",
    shot_threshold=0.5,
)
ID = SPEC.feature_id


def _spool(storage, planned, *, fail: bool = False) -> None:
    """What the stages leave for one input; the media's own bytes are its tokens."""
    row = replace(VideoRow.of(planned), sha256=content_sha256(planned.media.uri), boundary_probabilities=[0.0, 0.25])
    if fail:
        write_spooled(storage, row.quarantined("decode", "InvalidData", "no frames"), ID, None, None)
        return
    with open(planned.media.uri, "rb") as file:
        tokens = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).float().view(1, 1, -1)
    assert row.sha256 is not None
    row = replace(
        row,
        key=sample_key(row.sha256, row.video_id),
        kind="video",
        duration_s=1.0,
        kept_frames=[0],
        tokens_per_frame=1,
        hidden_size=tokens.shape[2],
        grid=[1, 1],
        device="cpu",
    )
    info = SampleInfo(
        key=row.key or "",
        video_id=row.video_id,
        uri=row.uri,
        sha256=row.sha256 or "",
        kind="video",
        grid=(1, 1),
        timestamps_s=(0.0,),
        duration_s=1.0,
        shots=((0.0, 1.0),),
        shot_index=(0,),
        feature_id=ID,
    )
    write_spooled(storage, row, ID, info.to_json(), tokens_to_bytes(tokens, "bf16"))


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, name in enumerate("abcde"):
        (folder / f"{name}.mp4").write_bytes(bytes(range(i, i + 4)))
    return folder


@pytest.fixture
def extraction(corpus, tmp_path):
    """A finished extraction of five inputs in shards of two; d.mp4 is quarantined."""
    storage = open_storage(str(tmp_path / "out"))
    plan = make_plan(list_inputs(str(corpus)), 2)
    asked = Extraction(
        feature=SPEC, samples_per_shard=2, encode_batch_size=1, encode_dtype="float32", threads_per_worker=1
    )
    storage.write(EXTRACTION, asked.to_json())
    write_plan(storage, plan)
    for row in plan.rows:
        _spool(storage, row, fail=row.media.video_id == "d.mp4")
    for planned in plan.shards.values():
        assemble_shard(storage, planned, plan.hashes[0], ID)
    finish_extraction(storage, plan, committed_shards(storage, plan, ID, contents=True))
    return storage, plan


def test_a_finished_extraction_reconciles_and_reads_back(extraction, tmp_path):
    storage, plan = extraction
    assert existing_extraction(storage) is not None
    assert storage.names("spool") == []
    rows = pq.read_table(tmp_path / "out/videos.parquet").to_pylist()
    assert [row["video_id"] for row in rows] == [row.media.video_id for row in plan.rows]
    assert [row["status"] for row in rows] == ["committed"] * 3 + ["quarantined", "committed"]
    assert (rows[3]["stage"], rows[3]["error_class"], rows[3]["message"]) == ("decode", "InvalidData", "no frames")
    assert all(row["boundary_probabilities"] == [0.0, 0.25] for row in rows)
    cache = read_cache(storage.uri)
    assert sorted(cache.video_ids) == ["a.mp4", "b.mp4", "c.mp4", "e.mp4"]
    assert cache.get(cache.video_ids["c.mp4"]).tokens.flatten().tolist() == [2, 3, 4, 5]


def test_counts_that_do_not_add_up_fail(extraction):
    storage, plan = extraction
    shards = committed_shards(storage, plan, ID, contents=False)
    del shards[1]
    with pytest.raises(RuntimeError, match=r"1 of 3 planned shards are not committed, the first is 1"):
        finish_extraction(storage, plan, shards)


def test_assembly_may_be_repeated_after_its_spool_is_gone(extraction):
    storage, plan = extraction
    before = storage.read("shards/000000.tar")
    record = assemble_shard(storage, plan.shards[0], plan.hashes[0], ID)
    assert CommittedShard.of(record) == committed_shards(storage, plan, ID, contents=True)[0]
    assert storage.read("shards/000000.tar") == before


def test_leftovers_of_a_killed_run_are_cleared(extraction, tmp_path):
    storage, _ = extraction
    kept = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    for name in ("spool/000000000009.arrow.1f.tmp", "shards/000000.tar.2e.tmp", "rows/000000.parquet.3d.tmp"):
        storage.write(name, b"half")
    assert not struck_out(storage, 3, "decode")
    clear_leftovers(storage)
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == kept


def test_strikes_count_attempts_that_did_not_end(tmp_path):
    storage = open_storage(str(tmp_path))
    assert [struck_out(storage, 3, "decode") for _ in range(5)] == [False, False, False, True, True]
    assert not struck_out(storage, 3, "encode")
    assert not struck_out(storage, 4, "decode")
    absolve(storage, 3, "decode")
    assert not struck_out(storage, 3, "decode")


def test_hashing_finds_an_altered_shard(extraction, tmp_path):
    storage, plan = extraction
    path = tmp_path / "out/shards/000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    assert sorted(committed_shards(storage, plan, ID, contents=False)) == [0, 1, 2]
    assert sorted(committed_shards(storage, plan, ID, contents=True)) == [0, 2]


@pytest.mark.parametrize("damage", ["tar", "record"])
def test_a_shard_that_does_not_verify_is_not_committed(extraction, tmp_path, damage, caplog):
    storage, plan = extraction
    path = tmp_path / ("out/shards/000001.tar" if damage == "tar" else "out/shards/000001.json")
    path.write_bytes(path.read_bytes()[:-2])
    assert sorted(committed_shards(storage, plan, ID, contents=False)) == [0, 2]
    assert str(path) in caplog.text
    assert sorted(committed_shards(storage, plan, ID, contents=False)) == [0, 2]


def test_shards_of_another_extraction_are_refused(extraction):
    storage, plan = extraction
    with pytest.raises(ValueError, match="mixes two extractions"):
        committed_shards(storage, plan, "0" * 32, contents=False)
    other = make_plan([replace(row.media, video_id="x" + row.media.video_id) for row in plan.rows], 2)
    with pytest.raises(ValueError, match="mixes two extractions"):
        committed_shards(storage, other, ID, contents=False)


def test_a_touched_or_moved_file_is_the_same(extraction, corpus):
    storage, plan = extraction
    shards = committed_shards(storage, plan, ID, contents=False)
    os.utime(corpus / "a.mp4", ns=(0, 7))
    moved = corpus.rename(corpus.with_name("moved"))
    inputs = list_inputs(str(moved))
    refreshed, reopened = refresh_media(storage, plan, inputs, shards)
    assert [row.media for row in refreshed.rows] == list(inputs)
    assert refreshed.hashes == plan.hashes
    assert reopened == set()


@pytest.mark.parametrize("changed", ["b.mp4", "d.mp4"])
def test_a_replaced_file_alone_is_undecided_again(extraction, corpus, changed):
    """d.mp4 is quarantined; its neighbour c.mp4, and a.mp4 beside b.mp4, are taken over as they are."""
    storage, plan = extraction
    shards = committed_shards(storage, plan, ID, contents=False)
    before = {name: storage.read(f"shards/{name}") for name in storage.names("shards")}
    (corpus / changed).write_bytes(b"9999")
    refreshed, reopened = refresh_media(storage, plan, list_inputs(str(corpus)), shards)
    [slot] = [row.slot for row in plan.rows if row.media.video_id == changed]
    assert reopened == {slot // 2}
    assert sorted(committed_shards(storage, plan, ID, contents=False)) == sorted({0, 1, 2} - reopened)
    neighbours = {row.slot for row in plan.rows if row.shard in reopened} - {slot}
    assert spooled_slots(storage, ID) == neighbours
    with pytest.raises(ValueError, match=r"no index\.parquet"):
        read_cache(storage.uri)

    # Decided again, the shard is a shard like any other.
    _spool(storage, refreshed.rows[slot])
    for planned in refreshed.shards.values():
        assemble_shard(storage, planned, plan.hashes[0], ID)
    finish_extraction(storage, refreshed, committed_shards(storage, plan, ID, contents=True))
    cache = read_cache(storage.uri)
    assert cache.get(cache.video_ids[changed]).tokens.flatten().tolist() == [57] * 4
    after = {name: storage.read(f"shards/{name}") for name in storage.names("shards")}
    assert {name for name in after if after[name] != before[name]} == {f"{slot // 2:06d}{s}" for s in (".tar", ".json")}


def test_what_was_made_from_a_file_stays_when_no_file_is_there_any_more(extraction, corpus):
    storage, plan = extraction
    shards = committed_shards(storage, plan, ID, contents=False)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (corpus / name).unlink()
    (corpus / "b.mp4").symlink_to("/dev/zero")
    (corpus / "c.mp4").mkdir()
    (corpus / "list.txt").write_text("\n".join(row.media.video_id for row in plan.rows))
    refreshed, reopened = refresh_media(storage, plan, list_inputs(str(corpus / "list.txt")), shards)
    assert (refreshed, reopened) == (plan, set())


def test_reopening_gives_the_same_bytes(extraction):
    storage, plan = extraction
    shards = committed_shards(storage, plan, ID, contents=False)
    before = {name: storage.read(f"{folder}/{name}") for folder in ("shards", "rows") for name in storage.names(folder)}
    slots = [slot for shard in shards.values() for slot in shard.quarantined_slots]
    assert slots == [3]
    assert reopen_shards(storage, plan, shards.keys(), slots) == {1}
    _spool(storage, plan.rows[3], fail=True)
    assemble_shard(storage, plan.shards[1], plan.hashes[0], ID)
    after = {name: storage.read(f"{folder}/{name}") for folder in ("shards", "rows") for name in storage.names(folder)}
    assert after == before


def test_the_spool_of_a_changed_file_is_dropped(extraction, corpus):
    storage, plan = extraction
    (corpus / "f.mp4").write_bytes(b"f1")
    (corpus / "g.mp4").write_bytes(b"g1")
    plan = grow_plan(plan, list_inputs(str(corpus)))
    for row in plan.rows[-2:]:
        _spool(storage, row)
    (corpus / "f.mp4").write_bytes(b"f2!")
    shards = committed_shards(storage, plan, ID, contents=False)
    refresh_media(storage, plan, list_inputs(str(corpus)), shards)
    assert spooled_slots(storage, ID) == {plan.rows[-1].slot}


def test_a_damaged_or_foreign_spool_is_dropped(extraction, corpus, tmp_path):
    storage, plan = extraction
    for row in plan.rows:
        _spool(storage, row)
    spool = tmp_path / "out/spool"
    files = sorted(spool.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-10])
    files[1].write_bytes(b"")
    assert spooled_slots(storage, ID) == {row.slot for row in plan.rows[2:]}
    assert spooled_slots(storage, "0" * 32) == set()
    assert list(spool.iterdir()) == []


def test_removing_takes_what_is_ours_and_leaves_the_rest(extraction, tmp_path):
    storage, _ = extraction
    (tmp_path / "out/README.md").write_text("mine")
    remove_extraction(storage)
    assert existing_extraction(storage) is None
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["README.md"]
