"""From a shard's spooled samples to a committed shard."""

from linvt.extraction.plan import PlannedInput
from linvt.extraction.rows import VideoRow, rows_to_table, rows_writer
from linvt.extraction.spool import read_spooled_payload, read_spooled_row, remove_spooled
from linvt.shards.commit import CommitRecord, PendingSample, Tombstone, commit_shard, read_record, write_shard
from linvt.shards.layout import rows_name
from linvt.shards.storage import Storage


def assemble_shard(
    storage: Storage, planned: tuple[PlannedInput, ...], plan_hash: str, feature_id: str
) -> CommitRecord:
    """Writes and commits the shard of `planned`, all of whose slots must be spooled, and clears its spool.

    May be run again at any point, also after it was killed: a shard that is committed already stays as it is.
    """
    slots = [one.slot for one in planned]
    committed = read_record(storage, planned[0].shard)
    if committed is not None:
        remove_spooled(storage, slots)
        return committed
    rows = [read_spooled_row(storage, one.slot) for one in planned]
    for one, row in zip(planned, rows):
        assert row.video_id == one.media.video_id, f"slot {one.slot} holds {row.video_id}, not {one.media.video_id}"
    samples = [_pending(storage, row) for row in rows if row.status == "committed"]
    record = write_shard(
        storage,
        shard=planned[0].shard,
        generation=planned[0].generation,
        plan_hash=plan_hash,
        feature_id=feature_id,
        devices={row.device for row in rows if row.device is not None},
        samples=samples,
        tombstones=[_tombstone(row) for row in rows if row.status == "quarantined"],
        num_slots=len(planned),
    )
    with rows_writer(storage, rows_name(record.shard)) as writer:
        writer.write_table(rows_to_table(rows))
    commit_shard(storage, record)
    remove_spooled(storage, slots)
    return record


def _pending(storage: Storage, row: VideoRow) -> PendingSample:
    assert row.key is not None
    assert row.sha256 is not None
    assert row.kind is not None
    assert row.tokens_per_frame is not None
    assert row.hidden_size is not None
    assert row.duration_s is not None
    return PendingSample(
        slot=row.slot,
        key=row.key,
        video_id=row.video_id,
        uri=row.uri,
        sha256=row.sha256,
        kind=row.kind,
        shape=(len(row.kept_frames), row.tokens_per_frame, row.hidden_size),
        grid=(row.grid[0], row.grid[1]) if row.grid else None,
        duration_s=row.duration_s,
        load=lambda: read_spooled_payload(storage, row.slot),
    )


def _tombstone(row: VideoRow) -> Tombstone:
    assert row.stage is not None
    assert row.error_class is not None
    return Tombstone(slot=row.slot, video_id=row.video_id, stage=row.stage, error_class=row.error_class)
